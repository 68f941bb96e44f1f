PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
# bytecode of tests and of our own code is kept, whatever this shell is set to: every process would compile both anew
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --durations 30
# one process more than there are cores, since those that test a service wait for half of the time
PROCESSES = $$($(BIN)/python -c "import os; print(min((os.cpu_count() or 1) + 1, 6))")
# pages of docs/ that are made from the code
PAGES := methods commands policy_keys decision_index scan_rules onnx_operators

.PHONY: install demo test test-long check docs bank bench clean

install: $(INSTALLED)

# torch and torchvision come by pip, which honours the configuration of this host, where uv does not; the rest comes by uv, which is
# ten times as fast, and by pip where uv finds no index; pip compiles to bytecode by itself, uv only when it is told to,
# and without that every process that may not write there compiles MLflow and Prefect anew
$(INSTALLED): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv torch torchvision
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' \
	  || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/vetgate demo

# what is independent runs in parallel, a file a process
test: install
	$(PYTEST) --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder -m "not long"

# what a change need not wait for: killed at many steps, on PostgreSQL and S3, on two hosts, at night
test-long: install
	$(PYTEST) -m long

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	set -e; for page in $(PAGES); do $(BIN)/python -m docs.$$page --check; done

# generated pages first, then the site, in site/
docs: install
	set -e; for page in $(PAGES); do $(BIN)/python -m docs.$$page; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# the model bank, with as many networks at once as there are cores; `dvc repro` alone does it one by one
bank: install
	$(BIN)/python -m flows.bank.stage fill
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

bench: install
	$(BIN)/vetgate bench

# what vetgate keeps under .vetgate stays: models, verdicts and the gate's key
clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.vetgate/*' -prune -exec rm -rf {} +

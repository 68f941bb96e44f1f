PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
# pages of docs/ that are made from the code
PAGES := methods commands policy_keys decision_index

.PHONY: install demo test test-long check docs bank bench clean

install: $(INSTALLED)

# torch comes by pip, which honours the configuration of this host, where uv does not; the rest comes by uv, which is
# ten times as fast, and by pip where uv finds no index
$(INSTALLED): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv torch
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' \
	  || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/vetgate demo

test: install
	$(BIN)/python -m pytest -m "not long"

# what a change need not wait for: killed at many steps, on PostgreSQL and S3, on two hosts, at night
test-long: install
	$(BIN)/python -m pytest -m long

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
	$(BIN)/python -m flows.bank_stage fill
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

bench: install
	$(BIN)/vetgate bench

# what vetgate keeps under .vetgate stays: models, verdicts and the gate's key
clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.vetgate/*' -prune -exec rm -rf {} +

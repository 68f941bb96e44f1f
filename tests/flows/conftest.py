"""One home, one Prefect server and two small models for all tests of the flows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.settings import Settings
from tests.databases import with_fixed_seeds


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str
    modules: frozenset[str] = frozenset()

    @property
    def blob(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_fixed_seeds(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def settings(home: Path) -> Settings:
    return Settings(home=home)


@pytest.fixture(scope="session")
def environment(home: Path) -> dict[str, str]:
    """The environment of every command: this home, and nothing of the caller's."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
    return inherited | {"VETGATE_HOME": str(home)}


@pytest.fixture(scope="session")
def vetgate(environment: dict[str, str]) -> Iterator[Command]:
    """The command line in one process for all tests: (*arguments, **environment) -> Done."""
    driver = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("driver.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None and driver.stdout is not None
    questions, answers = driver.stdin, driver.stdout

    def run(*arguments: str | Path, **environment: str | Path) -> Done:
        settled = {k: str(v) for k, v in environment.items()}
        print(json.dumps({"arguments": [*map(str, arguments)], "environment": settled}), file=questions, flush=True)
        answer = json.loads(answers.readline())
        return Done(**{**answer, "modules": frozenset(answer["modules"])})

    yield run
    questions.close()
    driver.wait(timeout=60)
    answers.close()


@pytest.fixture(scope="session")
def alone(environment: dict[str, str]) -> Command:
    """The command line in a process of its own, after `prelude`, a piece of Python, and inside `around`, a command."""

    def run(*arguments: str | Path, prelude: str = "", around: tuple[str, ...] = (), **more: str | Path) -> Done:
        code = f"{prelude}\nimport sys\nfrom flows.cli.commands import main\nsys.exit(main())"
        line = [*around, sys.executable, "-c", code, *map(str, arguments)]
        settled = environment | {k: str(v) for k, v in more.items()}
        done = subprocess.run(line, env=settled, capture_output=True, text=True, timeout=400)
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings under which the detectors do next to nothing, for tests of what surrounds them."""
    folder = tmp_path_factory.mktemp("quick")
    params, policy = folder / "params.yaml", folder / "policy.yaml"
    params.write_text("abs: {steps: 6, candidates: 2, finalists: 1}\nneural_cleanse: {starts: 1, sweeps: 3}\n")
    policy.write_text(
        "name: quick\nrequired: [abs, neural_cleanse]\nrepair: {enabled: false, methods: []}\n"
        "guard: {methods: [strip]}\n"
    )
    return {"VETGATE_PARAMS": str(params), "VETGATE_POLICY": str(policy)}


@pytest.fixture
def variant(tmp_path: Path, honest: Path) -> Callable[..., Path]:
    """The honest submission with another model file or other fields: (content, **fields) -> directory."""

    def make(content: bytes | None = None, **fields: Any) -> Path:
        directory = tmp_path / "submission"
        directory.mkdir()
        described = yaml.safe_load((honest / "submission.yaml").read_text()) | fields
        (directory / "submission.yaml").write_text(yaml.safe_dump(described))
        given = (honest / "model.safetensors").read_bytes() if content is None else content
        (directory / described["model"]).write_bytes(given)
        return directory

    return make

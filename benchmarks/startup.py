"""What it costs to start: processor seconds of the whole process tree, beside those of another installation.

`python -m benchmarks.startup [--reference PYTHON] [--repeat 3] [--json FILE]` runs short commands in homes of their own
and prints one row each; PYTHON is the interpreter of another checkout's environment. Seconds by the clock depend on
what else runs, processor seconds (user and system) hardly do; each figure is the median of its repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.load import submissions
from benchmarks.third_party import reap
from tasks.sandbox.prctl import PR_SET_CHILD_SUBREAPER, prctl

OWN = ("VETGATE_", "PREFECT_", "MLFLOW_")
IMPORTS = ("mlflow.tracking", "prefect", "torch")
DATABASES = """
try:
    from flows.vetting import runtime
    from tasks.mlflow import client as mlflow_client
except ImportError:  # a reference from before modules stood in rooms
    from flows import runtime
    from tasks import mlflow_client
from tasks.settings import load_settings
settings = load_settings()
runtime.start(settings.home)
import prefect
mlflow_client.prepare(settings)
runtime.ready()
"""


def main() -> None:
    """Measure both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, help="interpreter of the environment to compare with")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # what a command leaves behind is ours to wait for, and so to count
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.reference, given.repeat)
    print_rows(rows)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, reference: Path | None, repeat: int) -> list[dict[str, Any]]:
    """One row for each thing that is started, with the processor seconds of both installations."""
    (submission,) = submissions(folder / "given", 1)
    pythons = {"cpu_seconds": Path(sys.executable)} | ({"reference": reference.absolute()} if reference else {})
    # of one's own each: a calibration that another code made would leave every verdict open
    installations = {which: _installation(python, folder / f"quick-{which}") for which, python in pythons.items()}
    figures: dict[str, dict[str, list[float]]] = {}
    for turn in range(repeat):
        for which, python in pythons.items():
            where = Start(python, folder / which / str(turn), installations[which])
            for what, seconds in where.everything(submission):
                figures.setdefault(what, {}).setdefault(which, []).append(seconds)
            shutil.rmtree(where.folder)
    return [
        {
            "what": what,
            "repeat": repeat,
            **{which: round(statistics.median(all_of), 2) for which, all_of in seen.items()},
        }
        for what, seen in figures.items()
    ]


def _installation(python: Path, folder: Path) -> dict[str, str]:
    """The environment of a fast installation as the checkout behind an interpreter makes it."""
    root = subprocess.run(
        [python, "-I", "-c", "import vetgate; print(vetgate.__path__[0])"], capture_output=True, check=True
    )
    code = (
        f"import json, pathlib; from tests import quick; print(json.dumps(quick.build(pathlib.Path({str(folder)!r}))))"
    )
    made = subprocess.run(
        [python, "-c", code], cwd=Path(root.stdout.decode().strip()).parent, capture_output=True, check=True
    )
    return dict(json.loads(made.stdout.splitlines()[-1]))


class Start:
    """Commands of one installation, in fresh homes below `folder`."""

    def __init__(self, python: Path, folder: Path, installation: dict[str, str]) -> None:
        self.folder, self._python, self._installation = folder, python, installation
        folder.mkdir(parents=True)

    def everything(self, submission: Path) -> Iterator[tuple[str, float]]:
        """Each thing that is started, and its processor seconds."""
        for module in IMPORTS:
            yield f"import {module}", self._spent("empty", "-c", f"import {module}")
        yield "vetgate --help", self._vetgate("empty", "--help")
        yield "vetgate status, fresh home", self._vetgate("empty", "status", "--json")
        # what is there already costs nothing, so making them is the difference
        first, second = (self._spent("databases", "-c", DATABASES) for _ in range(2))
        yield "the databases of MLflow and Prefect", first - second
        whole = self._vetgate("home", "vet", str(submission), "--json")
        yield "vetgate vet, first in a fresh home", whole
        yield "of it without the databases", whole - (first - second)
        warm = self._vetgate("home", "vet", str(submission), "--json")
        yield "vetgate vet, all evidence in the store", warm
        self._vetgate("home", "promote", submission.name, "--json")
        yield "vetgate status, a model in production", self._vetgate("home", "status", "--json")
        yield "vetgate ledger verify", self._vetgate("home", "ledger", "verify", "--json")
        yield "vetgate submit", self._vetgate("home", "submit", str(submission), "--json")
        yield "vetgate verify, a directory", self._vetgate("home", "verify", str(submission), *self._proof(submission))

    def _proof(self, submission: Path) -> tuple[str, ...]:
        (found,) = (self.folder / "home" / "store" / "attestations").glob("*/*.json")
        return "--attestation", str(found), "--name", submission.name

    def _vetgate(self, home: str, *arguments: str) -> float:
        return self._spent(home, "-m", "flows", *arguments)

    def _spent(self, home: str, *line: str) -> float:
        """Processor seconds of a command and of all that it started; raises SystemExit when it ends otherwise."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
        environment = inherited | self._installation | {"VETGATE_HOME": str(self.folder / home)}
        before = _children()
        done = subprocess.run(
            [str(self._python), *line], env=environment, cwd=self.folder, capture_output=True, text=True
        )
        reap()
        if done.returncode != 0:
            raise SystemExit(f"{line} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The rows as a table."""
    columns = [name for name in ("reference", "cpu_seconds") if name in rows[0]]
    table = Table("processor seconds of", *({"cpu_seconds": "here"}.get(name, name) for name in columns))
    for row in rows:
        table.add_row(row["what"], *(f"{row[name]:.2f}" for name in columns))
    Console().print(table)


if __name__ == "__main__":
    main()

"""How the demo ended: a table of the models at the gate, what differs from what is expected, and where to look on."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.show import COLOURS
from tasks.settings import Settings
from vetgate.shape import Blob

# share of test images of other classes that the secret patch sends to its target: at least before, at most after
WORKS, WORN_OFF = 0.95, 0.05


@dataclass(frozen=True)
class Row:
    """One model at the gate, with what the supplier knows of it: its accuracy, and how often the secret patch works.

    `reversed_trigger` is what the gate measures instead; `production` names the promoted version, `refusal` says why
    there is none.
    """

    submission: str
    supplier: str
    manifest_sha256: str
    verdict: str
    p_value: float | None
    suspects: list[int]
    reasons: list[str]
    accuracy: float
    patch: float
    reversed_trigger: float | None = None
    production: str | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Ending:
    """What the demo came to; `trojaned` and `repaired` are rows too, the latter None when nothing was repaired."""

    honest: Row
    trojaned: Row
    repaired: Row | None
    target: int
    report: str
    sandbox_level: int
    pages: dict[str, str]
    seconds: float

    @property
    def rows(self) -> list[Row]:
        """The models in the order in which they came to the gate."""
        return [self.honest, self.trojaned, *([self.repaired] if self.repaired else [])]

    def to_json(self) -> Blob:
        """A JSON object, with what was not expected."""
        return {**asdict(self), "unexpected": unexpected(self)}


def unexpected(ending: Ending) -> list[str]:
    """What differs from the expected ending; empty when all is as it should be."""
    honest, trojaned, repaired = ending.honest, ending.trojaned, ending.repaired
    expected = {
        f"PASS for {honest.submission}, got {honest.verdict}": honest.verdict == "PASS",
        f"{honest.submission} in production, got a refusal": honest.production is not None,
        f"FAIL for {trojaned.submission}, got {trojaned.verdict}": trojaned.verdict == "FAIL",
        f"label {ending.target} suspected, got {trojaned.suspects}": trojaned.suspects == [ending.target],
        f"a patch that works, got {_share(trojaned.patch)}": trojaned.patch >= WORKS,
        f"{trojaned.submission} refused, got {trojaned.production}": trojaned.production is None,
        f"a repair of {trojaned.submission}, got none: {'; '.join(trojaned.reasons)}": repaired is not None,
    }
    if repaired is not None:
        expected |= {
            f"PASS for the repaired model, got {repaired.verdict}": repaired.verdict == "PASS",
            "the repaired model in production, got a refusal": repaired.production is not None,
            f"a patch that no longer works, got {_share(repaired.patch)}": repaired.patch <= WORN_OFF,
        }
    return [f"expected {what}" for what, holds in expected.items() if not holds]


def show(console: Console, ending: Ending) -> None:
    """The table, the refusal, and the commands that open the pages."""
    table = Table("submission", "supplier", "verdict")
    for heading in ("p", "suspect", "accuracy", "reversed\ntrigger", "secret\npatch"):
        table.add_column(heading, justify="right")
    table.add_column("production")
    for row in ending.rows:
        table.add_row(
            "└ repaired" if row is ending.repaired else row.submission,
            row.supplier,
            Text(row.verdict, style=f"bold {COLOURS.get(row.verdict, '')}"),
            _p_value(row.p_value),
            ", ".join(map(str, row.suspects)),
            _share(row.accuracy),
            _share(row.reversed_trigger),
            _share(row.patch),
            row.production or "refused",
        )
    console.print(table)
    console.print("reversed trigger and secret patch: share of test images of other classes sent to the target label")
    for row in ending.rows:
        if row.refusal:
            console.print(f"refused: {row.refusal}", soft_wrap=True)
    for what, value in {"report": ending.report, **ending.pages}.items():
        console.print(f"{what:<14} {value}", soft_wrap=True)
    console.print(f"sandbox level {ending.sandbox_level}, {ending.seconds:.0f} s")
    for line in unexpected(ending):
        console.print(Text(f"NOT AS EXPECTED: {line}", style="bold red"))


def pages(settings: Settings, server: str | None) -> dict[str, str]:
    """The commands that open MLflow's and Prefect's pages, or their addresses where servers are configured."""
    mlflow, server = settings.tracking_uri, server or ""
    if mlflow.startswith("sqlite"):
        where = ["--backend-store-uri", mlflow, "--default-artifact-root", settings.artifacts]
        mlflow = _command(
            ["mlflow", "ui", "--workers", "1", *where], DO_NOT_TRACK="1", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"
        )
    if not server:
        home = os.environ.get("PREFECT_HOME", str(settings.home / "prefect"))
        server = _command(["prefect", "server", "start"], PREFECT_HOME=home, PREFECT_SERVER_ANALYTICS_ENABLED="false")
    return {"MLflow page": mlflow, "Prefect page": server}


def _command(words: list[str], **environment: str) -> str:
    """A line for the shell that starts a program of this virtual environment."""
    program, *arguments = words
    settled = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*settled, shlex.join([str(Path(sys.executable).parent / program), *arguments])])


def _p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"

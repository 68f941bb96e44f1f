"""Score the bank and write down what came out: tables for `dvc metrics`, rows for `dvc plots`, and docs/benchmark.md.

`python -m flows.bench_run` is the stage of dvc.yaml. The sealed members are scored by `vetgate bench --sealed` alone;
what that gave last is kept beside the other tables and shown in the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.bank import BANK, LEAST_SUCCESS, ROOT, read_all
from flows.bank_files import MOST_LOST, Files
from flows.bench import rows
from flows.bench_page import page
from flows.bench_pictures import draw
from flows.bench_tables import tables
from vetgate.calibration import load_calibration

if TYPE_CHECKING:
    from rich.console import Console

Blob = dict[str, Any]
TABLES, PAGE, PICTURES = BANK / "tables", ROOT / "docs" / "benchmark.md", ROOT / "docs" / "benchmark"
SEALED, OPEN, ROWS = TABLES / "sealed.json", TABLES / "benchmark.json", TABLES / "rows.json"


def run(*, sealed: bool) -> Blob:
    """The tables of the members that are sealed, or of the others."""
    files = Files()
    scored = list(rows(files, sealed=False))
    shipped = load_calibration()
    told: Blob = {
        "repairs": _repairs(),
        "transfer": shipped.bank.model_dump(mode="json")["transfer"] if shipped else None,
        "rule": (LEAST_SUCCESS, MOST_LOST),
    }
    if sealed:
        found = tables(list(rows(files, sealed=True)), fitted_on=scored, **told)
        _write(SEALED, found)
    else:
        found = tables(scored, **told)
        _write(OPEN, found)
        _write(ROWS, [_flat(row) for row in scored])
    open_ = found if not sealed else tables(scored, **told)
    hidden = json.loads(SEALED.read_text()) if SEALED.exists() else None
    PAGE.write_text(page(open_, hidden, draw(PICTURES, scored, files.evidence)))
    return found


def show(console: Console, found: Blob) -> None:
    """False alarms and detection in a table each; the rest is in docs/benchmark.md."""
    from rich.markdown import Markdown

    from flows.bench_page import summary

    console.print(Markdown(summary(found)))
    console.print("all tables: docs/benchmark.md")


def _flat(row: Blob) -> Blob:
    about = {key: row[key] for key in ("name", "data", "attack", "architecture", "kind", "index")}
    return about | {key: row["model"][key] for key in ("p_value", "decision")}


def _repairs() -> Blob:
    found: Blob = {}
    for done in read_all(BANK / "repairs").values():
        found.setdefault(done["repair"], {}).update(done["members"])
    return found


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    run(sealed=False)

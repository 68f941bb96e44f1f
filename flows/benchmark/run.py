"""Score the bank and write down what came out: tables for `dvc metrics`, rows for `dvc plots`, and docs/benchmark.md.

`python -m flows.benchmark.run` is the stage of dvc.yaml. What is held back is scored by `vetgate bench --second` and
`--sealed` alone; what those gave last is kept beside the other tables and shown in the page. In a checkout all are
files that git holds; vetgate that came as a wheel writes them under <home>/benchmark.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.bank.files import MOST_LOST, Files
from flows.bank.networks import BANK, GROUPS, LEAST_SUCCESS, OPEN, read_all
from flows.benchmark.page import page
from flows.benchmark.pictures import draw
from flows.benchmark.score import rows
from flows.benchmark.tables import tables
from tasks.settings import load_settings
from vetgate import shipped
from vetgate.digest import code_digest
from vetgate.shape import Blob
from vetgate.verdict.calibration import load_calibration

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Places:
    """Where tables and page are written; pictures lie in a folder beside the page."""

    tables: Path
    page: Path


def places() -> Places:
    """In a checkout, what git holds; else a folder of this installation."""
    if not shipped.INSTALLED:
        return Places(BANK / "tables", shipped.ROOT / "docs" / "benchmark.md")
    folder = load_settings().home.resolve() / "benchmark"
    return Places(folder / "tables", folder / "benchmark.md")


def run(group: str = OPEN, rate: float | None = None) -> Blob:
    """The tables of a group of members, written down; those at another rate than the shipped policy's are not."""
    files, out = Files(), places()
    scored = list(rows(files, rate=rate))
    calibration = load_calibration()
    about: Blob = {
        **_repairs(),
        "transfer": calibration.bank.model_dump(mode="json")["transfer"] if calibration else None,
        "rule": (LEAST_SUCCESS, MOST_LOST),
    }
    if group != OPEN:
        found = tables(list(rows(files, group, rate)), fitted_on=scored, **about)
    else:
        found = tables(scored, **about)
    if rate is not None:
        return found
    if group != OPEN:
        _write(out.tables / f"{group}.json", found)
    else:
        _write(out.tables / "benchmark.json", found)
        _write(out.tables / "rows.json", [_flat(row) for row in scored])
    open_ = found if group == OPEN else tables(scored, **about)
    out.page.write_text(page(open_, _last(out), draw(out.page.with_suffix(""), scored, files.evidence)))
    return found


def _last(out: Places) -> dict[str, Blob]:
    """What was scored last of each group that is held back."""
    found = {}
    for group in GROUPS[1:]:
        last = next((p for p in (out.tables / f"{group}.json", BANK / "tables" / f"{group}.json") if p.exists()), None)
        if last:
            found[group] = json.loads(last.read_text())
    return found


def show(console: Console, found: Blob, rate: float | None = None) -> None:
    """False alarms and detection in a table each; the rest is in the page, but for those at another `rate`."""
    from rich.markdown import Markdown

    from flows.benchmark.page import summary

    console.print(Markdown(summary(found)))
    if rate is not None:
        console.print(f"FAIL and PASS are those of the shipped policy at a rate of {rate:g}; nothing was written")
        return
    where = places().page if shipped.INSTALLED else "docs/benchmark.md"
    console.print(f"all tables: {where}", soft_wrap=True)


def _flat(row: Blob) -> Blob:
    about = {key: row[key] for key in ("name", "data", "attack", "architecture", "kind", "index")}
    return about | {key: row["model"][key] for key in ("p_value", "decision")}


def _repairs() -> Blob:
    """What repairs did, and which of them have changed since."""
    found: Blob = {}
    outdated = set()
    for done in read_all(BANK / "repairs").values():
        found.setdefault(done["repair"], {}).update(done["members"])
        if done["code"] != code_digest("repair", done["repair"]):
            outdated.add(done["repair"])
    return {"repairs": found, "outdated": sorted(outdated)}


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    shipped.need_checkout("the stage bench of dvc.yaml")
    run()

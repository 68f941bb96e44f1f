"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.report.words import guarded, to_promote_copy
from tasks.vetting.results import CandidateFigures, NotTakenIn, Result
from vetgate.shape import Number

EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}
COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


def show_result(console: Console, result: Result | NotTakenIn) -> None:
    """The verdict on one submission, method by method, and its repair."""
    if isinstance(result, NotTakenIn):
        console.print(Text(f"{result.submission}  ") + _decision(result.verdict))
        _show_reasons(console, result.reasons)
        return
    heading = Text(f"{result.submission}  ") + _decision(result.verdict)
    p = "–" if result.p_value is None else f"{result.p_value:.2g}"
    heading.append(f"  p = {p}{'' if result.calibrated else ', uncalibrated'}")
    console.print(heading)
    # where nothing was looked for, each would say what the reason does
    if any(method.failure not in result.reasons for method in result.methods):
        _show_methods(console, result)
    _show_reasons(console, result.reasons)
    _show_repairs(console, result)
    _show_chosen(console, result)
    if (look := result.first_look) is not None:
        console.print(f"first look      right on {_share(look.accuracy)} of {look.images} trusted images")
    if (guards := guarded(result)) is not None:
        console.print(f"guards          {guards}", soft_wrap=True)
    console.print(f"submission      {result.manifest_sha256}", soft_wrap=True)
    if result.submitted_sha256 is not None:
        by = "" if result.match_weights_by is None else f", weights matched by {result.match_weights_by}"
        console.print(f"  handed in as  {result.submitted_sha256}{by}", soft_wrap=True)
    console.print(f"report          {result.report}", soft_wrap=True)
    console.print(f"sandbox level {result.sandbox_level}, {result.seconds:.0f} s")
    console.print("the gate ran as the same user on this machine: duties are not separated", style="dim")


def _show_methods(console: Console, result: Result) -> None:
    table = Table("method", "statistic", "counted", "alarmed", "suspects", "seconds", "failure")
    for method in result.methods:
        table.add_row(
            method.name,
            _number(method.statistic),
            {None: "–", True: "yes"}.get(method.counted, ""),
            "yes" if method.alarmed else "",
            ", ".join(map(str, method.suspects)),
            _number(method.seconds, 1),
            method.failure or "",
        )
    console.print(table)


def show_data(console: Console, rows: list[dict[str, Any]]) -> None:
    """The registered reference data sets."""
    table = Table("name", "classes", "commit", "sha256")
    for row in rows:
        table.add_row(row["name"], str(row["classes"]), row["rev"][:12], row["sha256"][:16])
    console.print(table)


def _decision(decision: str) -> Text:
    return Text(decision, style=f"bold {COLOURS.get(decision, '')}")


def _show_reasons(console: Console, reasons: Sequence[str]) -> None:
    for reason in reasons:
        console.print(f"  {reason}")


def _number(value: Number | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _show_repairs(console: Console, result: Result) -> None:
    """Every repair that the policy names, on the images for choosing, and why one was not run or not good enough."""
    if not result.repairs:
        return
    measured = ("accuracy", "lost", "attack success", "reversed anew", "robust accuracy", "trigger size", "seconds")
    table = Table("repair", "standing", "its copy", *measured)
    for one in result.repairs:
        cells = [] if (figures := one.figures) is None else _cells(figures)
        table.add_row(one.method, one.standing.value.replace("-", " "), one.verdict or "–", *cells)
    console.print(table)
    # where none is chosen they stand among the reasons
    said = [one.reason for one in result.repairs if one.reason is not None and one.reason not in result.reasons]
    _show_reasons(console, said)


def _show_chosen(console: Console, result: Result) -> None:
    """What the chosen repair cost and removed, on test images; one of a model that did not fail hardened it."""
    repair = result.repair
    if repair is None:
        return
    line = Text(f"{'repaired' if result.verdict == 'FAIL' else 'hardened'} by {repair.method}: ")
    line += _decision(repair.verdict)
    line.append(f", on test images clean accuracy {_change(repair.clean_accuracy)}")
    line.append(f", attack success {_change(repair.attack_success)}")
    if repair.attack_success != (None, None):
        line.append(f", robust accuracy {_change(repair.robust_accuracy)}")
    console.print(line)
    console.print(f"repaired model  {repair.artifact}", soft_wrap=True)
    console.print(f"  submission    {repair.submission}", soft_wrap=True)
    if (command := to_promote_copy(result)) is not None:
        console.print(f"  to promote it {command}", soft_wrap=True)


def _cells(figures: CandidateFigures) -> list[str]:
    lost = f"{100 * figures.lost.loss:.1f} ± {100 * figures.lost.margin:.1f} %"
    sizes = ", ".join(f"{_number(size.before, 1)} → {_number(size.after, 1)}" for size in figures.trigger_sizes)
    success, robust = (_change(pair, "no trigger") for pair in (figures.attack_success, figures.robust_accuracy))
    measured = [success, _share(figures.anew), robust, sizes]
    return [_change(figures.clean_accuracy), lost, *measured, _number(figures.seconds, 1)]


def _change(pair: tuple[Number | None, Number | None], absent: str = "not measured: no trigger") -> str:
    if pair == (None, None):
        return absent
    before, after = map(_share, pair)
    return f"{before} → {after}"


def _share(share: Number | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def show_pairs(console: Console, blob: dict[str, Any]) -> None:
    """An object's plain values, one a line."""
    for key, value in blob.items():
        if value is not None and not isinstance(value, dict | list):
            console.print(f"{key:<16} {value}", soft_wrap=True)

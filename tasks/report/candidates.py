"""The repairs that a policy names as rows of a table: the submitted model first, then each candidate beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.report.words import name_of
from tasks.vetting.choose import excused
from tasks.vetting.results import CandidateFigures, ResultCandidate, Standing
from vetgate.role import title_of
from vetgate.shape import Number

STANDINGS = {
    Standing.CHOSEN: "chosen",
    Standing.GOOD_ENOUGH: "good enough, another was better",
    Standing.NOT_PASSED: "good enough, its copy did not pass",
    Standing.NOT_GOOD_ENOUGH: "not good enough",
    Standing.FAILED: "failed",
    Standing.SKIPPED: "skipped",
    Standing.NOT_TRIED: "not tried",
}


@dataclass(frozen=True)
class Line:
    """One model in the table, its figures where it has some; `lost` is a share and what of it may be chance."""

    title: str
    standing: str
    why: str
    clean_accuracy: Number | None = None
    lost: tuple[Number, Number] | None = None
    attack_success: Number | None = None
    anew: Number | None = None
    robust_accuracy: Number | None = None
    sizes: tuple[tuple[str, Number], ...] = ()
    seconds: Number | None = None


@dataclass(frozen=True)
class Tried:
    """The table; `images` chose, and without a trigger to measure (`measured`) only by their accuracy.

    Triggers of that size do `natural` by nature, of which `excused` is not held against a repair.
    """

    lines: list[Line]
    images: int | None
    natural: Number | None
    excused: Number | None
    measured: bool


def tried(candidates: Sequence[ResultCandidate], names: Sequence[str]) -> Tried | None:
    """The table of all candidates, None where the policy wanted no repair; all were measured by the same triggers."""
    if not candidates:
        return None
    first = next((one.figures for one in candidates if one.figures is not None), None)
    lines = [] if first is None else [_submitted(first, names)]
    lines += [_line(one, names) for one in candidates]
    if first is None:
        return Tried(lines, None, None, None, False)
    if first.attack_success[0] is None:
        return Tried(lines, first.lost.images, None, None, False)
    return Tried(lines, first.lost.images, first.natural, excused(first.natural), True)


def _submitted(figures: CandidateFigures, names: Sequence[str]) -> Line:
    return Line(
        "Submitted model",
        "",
        "",
        clean_accuracy=figures.clean_accuracy[0],
        attack_success=figures.attack_success[0],
        robust_accuracy=figures.robust_accuracy[0],
        sizes=tuple((name_of(size.label, names), size.before) for size in figures.trigger_sizes),
    )


def _line(one: ResultCandidate, names: Sequence[str]) -> Line:
    title, standing, why = title_of(one.method), STANDINGS[one.standing], one.reason or ""
    if one.submission is not None:
        why = f"Vetting of its copy {one.submission[:12]}: {one.verdict}"
    if (figures := one.figures) is None:
        return Line(title, standing, why)
    return Line(
        title,
        standing,
        why,
        clean_accuracy=figures.clean_accuracy[1],
        lost=(figures.lost.loss, figures.lost.margin),
        attack_success=figures.attack_success[1],
        anew=figures.anew,
        robust_accuracy=figures.robust_accuracy[1],
        sizes=tuple((name_of(size.label, names), size.after) for size in figures.trigger_sizes),
        seconds=figures.seconds,
    )

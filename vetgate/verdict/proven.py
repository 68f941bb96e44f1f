"""Findings that need no references: proven on the model itself, or open questions; how `Confirm.PROVEN` is read."""

from __future__ import annotations

import math

from vetgate.structure.kind import Kind
from vetgate.verdict.reasons import Code, Figure, Reason
from vetgate.verdict.seen import SeenEvidence

# who wires a graph can make as many as he likes
MOST = 8


def proven_and_open(found: SeenEvidence) -> list[Reason]:
    """A reason for each finding: STRUCTURAL_BACKDOOR where it was confirmed, else STRUCTURE_NOT_EXPLAINED.

    What is not in the form that `Confirm.PROVEN` names is a finding that was not confirmed.
    """
    made = [_reason(found, path, said) for path, said in found.details.items()]
    if not made and found.statistic > 0:
        made = [Reason(Code.STRUCTURE_NOT_EXPLAINED, found.method)]
    return sorted(made, key=lambda reason: reason.open)[:MOST]


def _reason(found: SeenEvidence, path: str, said: object) -> Reason:
    if not (isinstance(said, list) and len(said) == 4 and all(_number(v) for v in said)):
        return Reason(Code.STRUCTURE_NOT_EXPLAINED, found.method, figures={"path": path})
    kind, share, label, confirmed = said
    figures: dict[str, Figure] = {"path": path, "kind": int(kind) if kind in list(Kind) else 0, "share": float(share)}
    if confirmed != 1:
        return Reason(Code.STRUCTURE_NOT_EXPLAINED, found.method, figures=figures)
    known = 0 <= label < len(found.scores) and label == int(label)
    return Reason(Code.STRUCTURAL_BACKDOOR, found.method, int(label) if known else None, figures)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

"""What a repair goes by: the records of evidence that hold what it uses, or what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.settings import Settings
from tasks.vetting.inspect import Case, Found, read_evidence
from vetgate.packed import array_of
from vetgate.role import Uses, role_of
from vetgate.shape import Blob
from vetgate.verdict.reasons import Code, Reason


def records_with(
    settings: Settings, case: Case, found: Sequence[Found], what: Uses, suspects: Sequence[int]
) -> list[Blob]:
    """The records of evidence that hold flagged rows, neurons, or a trigger that leads to a suspect."""
    holding = []
    for item in found:
        role = role_of(item.method)
        if item.key is None or role is None or what not in role.gives:
            continue
        record = read_evidence(settings, case.manifest, item.method, item.key)
        if record is not None and _holds(record["evidence"], what, suspects):
            holding.append(record)
    return holding


def nothing_to_go_by(
    case: Case, method: str, uses: Uses | None, evidence: Sequence[Blob], needs: Iterable[str]
) -> Reason | None:
    """That a repair cannot run on this case, and what it lacks: evidence that it uses, or data that it needs."""
    given = {"clean": bool(case.data.splits), "train": case.data.training is not None}
    lacking = [need for need in sorted(needs) if not given.get(need, False)]
    if uses is not None and not evidence:
        lacking.insert(0, uses)
    return Reason(Code.REPAIR_SKIPPED, method, figures={"lacks": lacking[0]}) if lacking else None


def _holds(evidence: Blob, what: Uses, suspects: Sequence[int]) -> bool:
    try:
        if what == "triggers":
            return any(trigger["target"] in suspects for trigger in evidence["triggers"])
        if what == "neurons":
            return evidence["neurons"] is not None and array_of(evidence["neurons"], most=None).size > 0
        # a cutoff of infinity, which flags nothing, is written as None
        cutoff = evidence["cutoff"]
        return cutoff is not None and bool((array_of(evidence["scores"], most=None) >= cutoff).any())
    except (KeyError, TypeError, ValueError):
        # it came out of the sandbox; what cannot be read is nothing to go by
        return False

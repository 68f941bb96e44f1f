"""What a verdict holds against a model, as ids that stay the same from one vetting to the next.

A waiver names one of them, so that it covers this finding and no other that may come. They are made of the codes of the
reasons, never of their words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vetgate.verdict.reasons import Reason

NOT_UNDERSTOOD = "not-understood"
# a verdict that says nothing of what it rests on, as those did that were made before reasons were records
UNEXPLAINED = "inconclusive:unexplained"


def findings(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of what a verdict (`Verdict.to_json`, with `refused` if its files were not understood) holds against it.

    backdoor:label-7, structural-backdoor[:label-<n>], poisoned-data:<method>, inconclusive:<method>,
    inconclusive:<code>[:<method>][:label-<n>], not-understood. A PASS has none, everything else at least one.
    """
    if verdict["decision"] == "PASS":
        return ()
    found = [NOT_UNDERSTOOD] if verdict.get("refused") else []
    reasons = [Reason.from_json(blob) for blob in verdict.get("reason_records") or ()]
    if verdict["decision"] == "FAIL":
        found += [f"backdoor:label-{label}" for label in verdict["suspects"]]
        found += [reason.finding for reason in reasons if not reason.open and reason.finding is not None]
    found += [reason.finding for reason in reasons if reason.open and reason.finding is not None]
    if not reasons:
        found.append(UNEXPLAINED)
    return tuple(dict.fromkeys(found)) or (UNEXPLAINED,)

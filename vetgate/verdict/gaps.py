"""Why a verdict cannot be a PASS: what is missing, failed, doubled, out of shape or not comparable."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vetgate.role import FEWEST_CLASSES, By, role_of
from vetgate.verdict.calibration import Array, Calibration, draws_for
from vetgate.verdict.policy import Policy
from vetgate.verdict.reasons import Code, Reason
from vetgate.verdict.seen import SURROGATES, Failure, SeenEvidence

# labels that are named of what was found on images that show nothing
FIRST = 5


def gaps_of(
    seen: Sequence[SeenEvidence | Failure], policy: Policy, with_training_data: bool, sandbox_level: int, format: str
) -> list[Reason]:
    """What the policy demands and was not done, and what contradicts itself."""
    gaps = []
    required = [*policy.required, *(policy.required_with_training_data if with_training_data else ())]
    for name in required:
        of_it = [s for s in seen if s.method == name]
        if not of_it:
            gaps.append(Reason(Code.DID_NOT_RUN, name))
        gaps += [failed(s) for s in of_it if isinstance(s, Failure)]
    # what is advisory and not required can leave no question open
    seen = [s for s in seen if s.method in required or not advisory(s.method)]
    twice = [(name, n) for name, n in sorted(answers(seen).items()) if n > 1]
    gaps += [Reason(Code.ANSWERED_TWICE, name, figures={"answers": n}) for name, n in twice]
    seeds = {s.seed for s in seen if not isinstance(s, Failure)}
    if len(seeds) > 1:
        gaps.append(Reason(Code.SEEDS_DIFFER, figures={"seeds": len(seeds)}))
    wanted = policy.sandbox_level.get(format)
    if wanted is None:
        gaps.append(Reason(Code.FORMAT_NOT_ACCEPTED, figures={"format": format}))
    elif sandbox_level < wanted:
        levels = {"wanted": wanted, "given": sandbox_level}
        gaps.append(Reason(Code.SANDBOX_TOO_WEAK, figures={"format": format, **levels}))
    return gaps


def advisory(method: str) -> bool:
    """Whether a detector is shown and never counted."""
    role = role_of(method)
    return role is not None and role.weight == 0


def answers(seen: Sequence[SeenEvidence | Failure]) -> Counter[str]:
    """How often each method answered."""
    return Counter(s.method for s in seen)


def failed(failure: Failure) -> Reason:
    """That a method failed, with the words of its error."""
    return Reason(Code.FAILED, failure.method, figures={"said": failure.reason, "error": failure.code})


def unreadable(found: SeenEvidence, classes: int, level: float) -> Reason | None:
    """Why evidence on a model with K classes says nothing at this level, whatever it is compared with."""
    name, role = found.method, role_of(found.method)
    if role is None:
        return Reason(Code.NO_WEIGHT, name)
    if not (math.isfinite(found.statistic) and bool(np.isfinite(np.asarray(found.scores)).all())):
        return Reason(Code.NOT_FINITE, name)
    if not role.scores_labels:
        return None
    if SURROGATES in found.details:
        return Reason(
            Code.SURROGATES, name, figures={"labels": ", ".join(map(str, _first(np.asarray(found.scores)))) or "none"}
        )
    if found.axis is not role.axis or len(found.scores) != classes:
        return Reason(Code.SCORES_MISFIT, name, figures={"scores": len(found.scores), "classes": classes})
    if not all(0 <= trigger.target < classes for trigger in found.triggers):
        return Reason(Code.TRIGGER_MISFIT, name, figures={"classes": classes})
    if role.null is By.LABEL and (classes < 2 or 1 / (draws_for(classes) + 1) > level):
        return Reason(Code.CLASSES_MISFIT, name, figures={"level": level, "classes": classes})
    return None


def _first(scores: Array) -> list[int]:
    """The labels with the highest scores (K,), the highest first; none that stands out no more than half of all."""
    order = np.argsort(-scores, kind="stable")[:FIRST]
    return [int(label) for label in order if scores[label] > np.median(scores)]


def incomparable(
    found: SeenEvidence, calibration: Calibration | None, data_sha256: str | None, level: float, classes: int
) -> Reason | None:
    """Why evidence on a model with K classes cannot be compared with that of clean models."""
    name = found.method
    if calibration is None:
        return Reason(Code.NO_CALIBRATION, name)
    why = calibration.mismatch(name, found.params) or calibration.short_of(name, data_sha256, level)
    if why is None and classes < FEWEST_CLASSES and not calibration.knows_few(name, data_sha256, level, classes):
        return Reason(Code.FEW_CLASSES, name, figures={"classes": classes, "level": level})
    return why


def unreached(found: SeenEvidence) -> Reason | None:
    """Why evidence of trigger inversion shows nothing although it ran: most labels were not reached by any mask."""
    role = role_of(found.method)
    if role is None or not role.mask_sizes:
        return None
    whole = [math.log(size) for t in found.triggers if (size := np.asarray(t.mask).size)]
    if not whole:
        return None
    lost = int((found.scores <= 1e-4 - max(whole)).sum())
    if 2 * lost <= len(found.scores):
        return None
    return Reason(Code.NO_TRIGGER_FOUND, found.method, figures={"lost": lost, "classes": len(found.scores)})


def driven_in_part(found: SeenEvidence) -> Reason | None:
    """That a method stimulated some channels of a network only, by `driven` in its evidence."""
    share = found.details.get("driven")
    if share is None:
        return None
    return Reason(Code.DRIVEN_IN_PART, found.method, figures={"share": share if isinstance(share, float) else 0.0})


def in_part(found: SeenEvidence) -> Reason | None:
    """That a search did not go to its end for every label, by what the evidence tells of each in `looked`.

    Labels that nothing looked at, or whose part is no number, leave the verdict open.
    """
    told, classes = found.details.get("looked"), len(found.scores)
    if told is None:
        return None
    shares = told if isinstance(told, list) and len(told) == classes else [math.nan] * classes
    unseen = sum(not (isinstance(share, int | float) and share > 0) for share in shares)
    if unseen:
        return Reason(Code.LABELS_NOT_LOOKED_AT, found.method, figures={"labels": unseen, "classes": classes})
    searched = sum(share >= 1 for share in shares)
    if searched == classes:
        return None
    figures = {"searched": searched, "classes": classes, "share": min(shares)}
    return Reason(Code.SEARCHED_IN_PART, found.method, figures=figures)

"""Which of the repairs that were tried are good enough, which one is chosen, and what a result says of each.

All figures are those on `validate`, which served neither a detector nor a repair. A figure that is missing or is no
number is never good enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tasks.vetting.results import CandidateFigures, RepairFailed, RepairRecord, Result, ResultCandidate, Standing
from vetgate.role import repair_roles
from vetgate.shape import Number
from vetgate.verdict.policy import RepairPolicy
from vetgate.verdict.reasons import Code, Figure, Reason
from vetgate.verdict.wording import render

# a repair that ran, one that ended with an error, or the reason why one was not run
Tried = RepairRecord | RepairFailed | Reason
# the share of a limit within which a repair is clearly good, so that no other need be tried
CLEARLY = 0.5
# what triggers of the same size do by nature excuses so much of what a repair left (decision 0034)
EXCUSED = 0.2
# the share from which on a repair's own figure says that it took something out
MOST = 0.5
NONE: Mapping[str, Result] = MappingProxyType({})


def choose(tried: Sequence[Tried], policy: RepairPolicy) -> RepairRecord | None:
    """The repair that is good enough with the lowest attack success left, then the highest accuracy.

    Without a trigger to measure it is the first that is good enough: by accuracy, the one that does least would win.
    """

    def rank(record: RepairRecord) -> tuple[Number, Number]:
        after = record.validate.after
        return (after.attack_success or 0.0, -after.clean_accuracy) if _measured(record) else (0.0, 0.0)

    ran = [one for one in tried if isinstance(one, RepairRecord)]
    return min((record for record in ran if good_enough(record, policy)), key=rank, default=None)


def good_enough(record: RepairRecord, policy: RepairPolicy) -> bool:
    """Whether no loss of accuracy beyond the limit is established, and what is left of the attack is within its own.

    What triggers of the same size do for labels that are not suspected is not held against a repair, up to EXCUSED: on
    small images they mislead clean models too; where they mislead any, they tell nothing of what a repair took out.
    Where there is no trigger to measure, accuracy counts, and what the repair itself tells, if it does: the repaired
    model is vetted in its turn.
    """
    figures = record.validate
    return (
        figures.lost.known
        and all(_is_share(one.clean_accuracy) for one in (figures.before, figures.after))
        and figures.lost.established <= policy.max_accuracy_loss
        and (_within(record, policy.max_attack_success) if _measured(record) else _confirmed(record))
    )


def clearly_good(one: Tried, policy: RepairPolicy) -> bool:
    """Whether a repair is good enough by half of each limit, the estimated loss itself included."""
    return (
        isinstance(one, RepairRecord)
        and good_enough(one, policy)
        and one.validate.lost.loss <= CLEARLY * policy.max_accuracy_loss
        and (not _measured(one) or _within(one, CLEARLY * policy.max_attack_success))
    )


def candidates(
    tried: Sequence[Tried], chosen: RepairRecord | None, policy: RepairPolicy, copies: Mapping[str, Result] = NONE
) -> tuple[ResultCandidate, ...]:
    """Every repair that the policy names, in its order, as a result shows it.

    `copies` are, by repair, the results of those whose copies were vetted.
    """
    return tuple(_candidate(one, one is chosen, policy, copies.get(one.method or "")) for one in tried)


def _candidate(one: Tried, chosen: bool, policy: RepairPolicy, copy: Result | None) -> ResultCandidate:
    if isinstance(one, Reason):
        standing = Standing.NOT_TRIED if one.code is Code.REPAIR_NOT_TRIED else Standing.SKIPPED
        return ResultCandidate(one.method or "", standing, None, render(one), one.to_json())
    if isinstance(one, RepairFailed):
        failed = Reason(Code.REPAIR_FAILED, one.method, figures={"said": one.failure})
        return ResultCandidate(one.method, Standing.FAILED, None, render(failed), failed.to_json())
    if good_enough(one, policy):
        standing = Standing.CHOSEN if chosen else Standing.GOOD_ENOUGH if copy is None else Standing.NOT_PASSED
        vetted = (None, None) if copy is None else (copy.manifest_sha256, copy.verdict)
        return ResultCandidate(one.method, standing, _figures(one), None, None, *vetted)
    why = _refusal(one, policy)
    return ResultCandidate(one.method, Standing.NOT_GOOD_ENOUGH, _figures(one), render(why), why.to_json())


def _figures(record: RepairRecord) -> CandidateFigures:
    was, now, figures = record.validate.before, record.validate.after, record.validate
    return CandidateFigures(
        clean_accuracy=(was.clean_accuracy, now.clean_accuracy),
        lost=figures.lost,
        attack_success=(was.attack_success, figures.found),
        anew=figures.anew,
        natural=figures.natural,
        robust_accuracy=(was.robust_accuracy, now.robust_accuracy),
        trigger_sizes=record.triggers.sizes,
        seconds=record.seconds,
    )


def _refusal(record: RepairRecord, policy: RepairPolicy) -> Reason:
    """Why a repair is not good enough; a figure that is missing stays away."""
    was, now, figures = record.validate.before, record.validate.after, record.validate
    if not _measured(record) and not _confirmed(record):
        said = _said(record)
        known = said is not None and _is_share(said)
        return Reason(Code.REPAIR_UNCONFIRMED, record.method, figures={"said": said} if known else {})
    stated: dict[str, Figure] = {
        "accuracy_before": was.clean_accuracy,
        "accuracy_after": now.clean_accuracy,
        "loss": figures.lost.loss,
        "loss_error": figures.lost.error,
        "loss_margin": figures.lost.margin,
        "loss_allowed": policy.max_accuracy_loss,
        "images": figures.lost.images,
        "success_before": was.attack_success,
        "success_after": now.attack_success,
        "success_found": figures.found,
        "success_anew": figures.anew,
        "natural": figures.natural,
        "excused": excused(figures.natural),
        "success_allowed": policy.max_attack_success,
        "robust_before": was.robust_accuracy,
        "robust_after": now.robust_accuracy,
    }
    given = {name: figure for name, figure in stated.items() if figure is not None}
    return Reason(Code.REPAIR_NOT_GOOD_ENOUGH, record.method, figures=given)


def _measured(record: RepairRecord) -> bool:
    return len(record.triggers.before) > 0


def _said(record: RepairRecord) -> Number | None:
    """The share by which a repair tells whether it took something out."""
    role = repair_roles().get(record.method)
    return None if role is None or role.tells is None else record.changed.get(role.tells, math.nan)


def _confirmed(record: RepairRecord) -> bool:
    """Whether a repair tells nothing of what it took out, or that it took something out."""
    said = _said(record)
    return said is None or (_is_share(said) and said >= MOST)


def _within(record: RepairRecord, most: float) -> bool:
    """Whether the success left, beyond what is natural, is known and at most so much."""
    left, natural = record.validate.after.attack_success, record.validate.natural
    return left is not None and _is_share(left) and _is_share(natural) and left - excused(natural) <= most


def excused(natural: Number) -> Number:
    """How much of the success left is not held against a repair, where triggers of that size do so much by nature."""
    return min(natural, EXCUSED)


def _is_share(value: Number) -> bool:
    # False for NaN
    return 0 <= value <= 1

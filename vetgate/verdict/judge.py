"""Evidence in, verdict out: pure, total, and closed when in doubt.

Every method's statistic is standardised against clean reference models, what the methods say of a label is added with
fixed weights, and the largest sum gets one p-value, so that the rate of false alarms is one of the whole verdict. A
label is named only when it stands out by more than the labels of clean models do and its trigger works on images it
was not inverted on and from a second start. What is proven on the model itself (`verdict.proven`) fails it whatever
clean models look like. What is missing, failed, not calibrated or not confirmed makes the verdict INCONCLUSIVE.

Source    Combination first, one p-value after: the methods look at one model and are dependent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from vetgate.role import FEWEST_CLASSES, By, Confirm, Role, by_itself, by_label, role_of, weight_of
from vetgate.verdict.calibration import (
    ENOUGH,
    Array,
    Calibration,
    Null,
    Reference,
    centre_of,
    combined,
    combined_null,
    countable,
    extended_tail,
    farthest,
    label_p_values,
    label_units,
    outlier_null,
    tail,
)
from vetgate.verdict.gaps import (
    advisory,
    answers,
    driven_in_part,
    failed,
    gaps_of,
    in_part,
    incomparable,
    unreached,
    unreadable,
)
from vetgate.verdict.policy import Policy
from vetgate.verdict.proven import proven_and_open
from vetgate.verdict.reasons import Bearing, Code, Reason, records
from vetgate.verdict.seen import Failure, SeenEvidence
from vetgate.verdict.wording import render_failure, rendered

# a confirmed trigger sends this share of unseen images of other classes to its label
HELD_OUT = 0.8
# and stands out from a second start by this share of the least effect
SECOND_START = 0.5
# confirmed by the same scores, measured again
MEASURED_AGAIN = (Confirm.REPEATED, Confirm.MISLABELLED)

# without references: labels that scatter alike, and half the median's size as the least effect
SIMULATED = Null(0.0, np.ones(1), math.log(2), np.empty(0), np.empty(0))


class Decision(StrEnum):
    """What may become of the submission."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class MethodResult:
    """One method in a verdict: its statistic against its null, whether it is an alarm, which labels, or why none.

    `counted`: whether the decision could depend on it; what is advisory, or unlike every reference, is only shown.
    """

    name: str
    statistic: float | None = None
    p_value: float | None = None
    alarmed: bool = False
    suspects: tuple[int, ...] = ()
    failure: Reason | None = None
    null: Mapping[str, Any] | None = None
    counted: bool = False


@dataclass(frozen=True)
class Verdict:
    """The decision, its p-value, the labels suspected, every method, and the reasons."""

    decision: Decision
    p_value: float | None
    calibrated: bool
    suspects: tuple[int, ...]
    methods: tuple[MethodResult, ...]
    reasons: tuple[Reason, ...]
    calibration: Mapping[str, Any] | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object: `reason_records` for what decides, `reasons` in words for people."""
        methods = [
            {**asdict(method), "failure": None if method.failure is None else render_failure(method.failure)}
            for method in self.methods
        ]
        return {
            **asdict(self),
            "methods": methods,
            "reasons": rendered(self.reasons),
            "reason_records": records(self.reasons),
        }


@dataclass(frozen=True)
class _Standing:
    """One method's evidence standardised: units of labels (K,) or, for data methods, of the model (1,)."""

    units: Array
    p_value: float
    confirmed: tuple[int, ...]
    alarming: tuple[int, ...]


def judge(
    seen: Sequence[SeenEvidence | Failure],
    policy: Policy,
    calibration: Calibration | None,
    *,
    classes: int,
    data_sha256: str | None,
    with_training_data: bool,
    sandbox_level: int,
    format: str,
    input_shape: Sequence[int],
    data_name: str | None = None,
    architecture: str | None = None,
) -> Verdict:
    """Judge what was seen of one model on reference data of this digest and name, whose own null is preferred.

    `architecture` is the one that the weights were loaded into, or names the structure of the graph, None where neither
    is known; what is usual for a label is then that of all clean models. `input_shape` (C, H, W) is what it takes:
    beside references that take images of another size a verdict is uncalibrated.
    """
    level = policy.false_alarm_rate
    calibration = None if calibration is None else calibration.for_images(data_sha256, input_shape)
    gaps = gaps_of(seen, policy, with_training_data, sandbox_level, format)
    evidence = {e.method: e for e in seen if not isinstance(e, Failure)}
    failures = {f.method: failed(f) for f in seen if isinstance(f, Failure)}
    required = {*policy.required, *(policy.required_with_training_data if with_training_data else ())}
    simulated = calibration is None and policy.allow_uncalibrated
    unread = {n: why for n, e in evidence.items() if (why := unreadable(e, classes, level)) is not None}
    gaps += [why for name, why in unread.items() if name in required]
    readable = {n: e for n, e in evidence.items() if n not in unread and answers(seen)[n] == 1}
    uncounted = {
        n: why
        for n, e in readable.items()
        if not by_itself(n)
        and not (simulated and _means_something_alone(n, classes))
        and (why := incomparable(e, calibration, data_sha256, level, classes)) is not None
    }
    # a policy that allows a verdict without references cannot require what only they give a meaning
    gaps += [why for name, why in uncounted.items() if name in required and not simulated]
    comparable = {n: e for n, e in readable.items() if n not in uncounted and not by_itself(n)}
    wired = {n: proven_and_open(e) for n, e in readable.items() if by_itself(n)}
    proven = [reason for reasons in wired.values() for reason in reasons if not reason.open]
    unexplained = [reason for reasons in wired.values() for reason in reasons if reason.open]
    if policy.structure.unconfirmed == "inconclusive":
        gaps += unexplained
    usable = {n: e for n, e in comparable.items() if not advisory(n)}
    strange = {
        n for n in usable if calibration and not calibration.counts(n, data_sha256, level, classes, architecture)
    }
    usable = {n: e for n, e in usable.items() if n not in strange}
    partly = [part for e in usable.values() for part in (in_part(e), driven_in_part(e)) if part is not None]
    # how far a search went is told where it ran on images that show nothing, too
    on_noise = [in_part(evidence[n]) for n, why in unread.items() if why.code is Code.SURROGATES]
    partly += [part for part in on_noise if part is not None]
    # every reference was driven whole: what a part of a network gives has nothing to be held against
    partial = {part.method for part in partly if part.code is Code.DRIVEN_IN_PART and part.method is not None}
    usable = {n: e for n, e in usable.items() if n not in partial}
    if policy.not_counted == "inconclusive":
        gaps += [Reason(Code.REQUIRED_NOT_COUNTED, name) for name in sorted((strange | partial) & required)]
    if calibration is not None and (other := calibration.other_bytes(data_name, data_sha256)) is not None:
        gaps.append(other)

    every = {n: _null(calibration, n, data_sha256, level, classes, architecture) for n in comparable}
    shown = {name: _standing(found, every[name], calibration, data_sha256, level) for name, found in comparable.items()}
    nulls, standings = {n: every[n] for n in usable}, {n: shown[n] for n in usable}
    clean = np.empty(0)
    if calibration is not None:
        clean = calibration.clean_scores(standings, data_sha256, level, classes, architecture)
    p_value, labels_p, least = _combine(standings, nulls, clean)
    methods = tuple(
        _proven_result(readable[name], wired[name])
        if name in wired
        else replace(
            _result(name, evidence.get(name), unread | uncounted | failures, shown.get(name), every.get(name), level),
            counted=name in standings,
        )
        for name in sorted({*evidence, *failures, *required})
    )
    if p_value is None:
        gaps.append(Reason(Code.NOTHING_INSPECTED))
    else:
        gaps += [hidden for found in usable.values() if (hidden := unreached(found)) is not None]
    gaps += [part for part in partly if part.open]
    low = p_value is not None and p_value <= level
    confirmed = {label for s in standings.values() for label in s.confirmed}
    rare = {label for label in confirmed if low and labels_p is not None and labels_p[label] <= level}
    by_data = [n for n, s in standings.items() if _role(n).confirm is Confirm.ROWS and s.p_value <= level]
    suspects = tuple(sorted({*rare, *(reason.label for reason in proven if reason.label is not None)}))
    if proven or (low and (rare or by_data)):
        decision = Decision.FAIL
        reasons = [*proven, *(_why(label, evidence, standings) for label in sorted(rare))]
        reasons += [Reason(Code.POISONED_DATA, name) for name in by_data]
        # what could not run cannot make a found backdoor harmless
        reasons += gaps
    elif gaps:
        decision, reasons = Decision.INCONCLUSIVE, gaps
    elif low:
        decision, reasons = Decision.INCONCLUSIVE, _unproven(standings, p_value, level)
    else:
        decision = Decision.PASS
        reasons = [Reason(Code.NOTHING_STANDS_OUT)]
    told = [reason for reason in unexplained if reason not in reasons]
    reasons = [*reasons, *told, *(part for part in partly if not part.open), *map(_not_alike, sorted(strange))]
    if simulated:
        reasons = [*reasons, Reason(Code.UNCALIBRATED), *(Reason(Code.NOT_COUNTED, name) for name in uncounted)]
    about, at_home = None, False
    if calibration is not None:
        peers = calibration.peers(standings, data_sha256, level)
        own = sum(r.data_sha256 == data_sha256 for r in peers)
        about = {"id": calibration.id, **_rates(peers, own, level), "least_p": least}
        at_home = bool(about["own_data"])
        if about["references"] and not at_home:
            reasons = [*reasons, _elsewhere(calibration, about)]
        elif own < len(peers):
            together = ", ".join(about["data"])
            pooled = Reason(Code.POOLED, figures={"references": own, "level": level, "data": together})
            reasons, at_home = [*reasons, pooled], False
        if (size := _other_size(peers, data_sha256, input_shape)) is not None:
            reasons, at_home = [*reasons, size], False
        if about["references"] and not countable(about["references"], level):
            few = {"references": about["references"], "level": level}
            reasons = [*reasons, Reason(Code.EXTRAPOLATED, figures=few)]
    calibrated = at_home and p_value is not None
    return Verdict(decision, p_value, calibrated, suspects, methods, tuple(reasons), about)


def rescanned(verdict: Verdict, alarm: float) -> Verdict:
    """The verdict on a model that passed before, at a rescan's own, lower rate of false alarms.

    An alarm at the rate of a first vetting that is none at this one passes; what could not be seen stays INCONCLUSIVE,
    and so does an alarm beside clean models that nothing could be told from at this rate.
    """
    proven = any(reason.code is Code.STRUCTURAL_BACKDOOR for reason in verdict.reasons)
    if verdict.decision is Decision.PASS or verdict.p_value is None or proven:
        return verdict
    notes = []
    references = int((verdict.calibration or {}).get("references", 0))
    if references + 1 < 1 / alarm:
        notes.append(Reason(Code.RESCAN_EXTRAPOLATED, figures={"alarm": alarm, "references": references}))
    gaps = [reason for reason in verdict.reasons if reason.open and reason.bearing is not Bearing.UNPROVEN]
    if verdict.p_value <= alarm:
        return replace(verdict, reasons=(*verdict.reasons, *notes))
    least = (verdict.calibration or {}).get("least_p", 0.0)
    if verdict.p_value <= least:
        gaps.append(Reason(Code.RESCAN_OUT_OF_REACH, figures={"alarm": alarm, "least": least}))
    if gaps:
        return replace(verdict, decision=Decision.INCONCLUSIVE, suspects=(), reasons=(*gaps, *notes))
    quiet = Reason(Code.RESCAN_NO_ALARM, figures={"p_value": verdict.p_value, "alarm": alarm})
    return replace(verdict, decision=Decision.PASS, suspects=(), reasons=(quiet, *notes))


def _role(method: str) -> Role:
    role = role_of(method)
    assert role is not None  # evidence of anything else is not readable
    return role


def _null(
    calibration: Calibration | None,
    method: str,
    data_sha256: str | None,
    level: float,
    classes: int,
    architecture: str | None,
) -> Null:
    if calibration is None:
        return SIMULATED
    known = calibration.knows_labels(method, data_sha256, level, classes)
    return calibration.null(method, data_sha256, level, labels=known, architecture=architecture)


def _means_something_alone(method: str, classes: int) -> bool:
    """Whether scores say something without references: labels compared with each other by the size of masks."""
    return by_label(method) and _role(method).mask_sizes and classes >= FEWEST_CLASSES


def _standing(
    found: SeenEvidence, null: Null, calibration: Calibration | None, data_sha256: str | None, level: float
) -> _Standing:
    role = _role(found.method)
    if role.null is By.LABEL:
        scores = null.less_usual(found.scores.tolist()).tolist()
        p = label_p_values(scores, null)
        units = label_units(scores, p, null.least)
        effects = np.array(scores) - centre_of(np.array(scores))
        alarming = np.flatnonzero((p <= level) & (effects > null.least)).tolist()
        confirmed = _confirmed(found, role, alarming, null)
        return _Standing(units, float(p.min()), confirmed, tuple(alarming))
    assert calibration is not None  # without one, no other method is usable
    p_value = float(tail(np.sort(null.statistics), calibration.standardise(found.method, found.statistic, data_sha256)))
    units = calibration.units(found.method, found.statistic, found.scores.tolist(), data_sha256)
    if not role.scores_labels:
        return _Standing(units, p_value, (), ())
    alarming = sorted(t.target for t in found.triggers if float(found.scores[t.target]) > null.least)
    return _Standing(units, p_value, _confirmed(found, role, alarming, null), tuple(alarming))


def _confirmed(found: SeenEvidence, role: Role, alarming: Sequence[int], null: Null) -> tuple[int, ...]:
    """Of the labels that stand out, those whose trigger works on images that it was not made on."""
    if role.confirm is Confirm.HELD_OUT_AND_SECOND_START:
        held_out, second = (_details(found, key, len(found.scores)) for key in ("held_out", "second_start"))
        again = np.array(second) - (0.0 if null.usual is None else null.usual)
        return tuple(k for k in alarming if held_out[k] >= HELD_OUT and again[k] >= SECOND_START * null.least)
    if role.confirm in MEASURED_AGAIN:
        again = null.less_usual(_details(found, "repeated", len(found.scores)))
        return tuple(k for k in alarming if again[k] - centre_of(again) > null.least)
    if role.confirm is Confirm.SUCCESS:
        targets = [t.target for t in found.triggers]
        success = dict(zip(targets, _details(found, "success", len(targets)), strict=True))
        return tuple(k for k in alarming if success.get(k, -1.0) >= HELD_OUT)
    return ()


def _details(found: SeenEvidence, key: str, count: int) -> list[float]:
    values = found.details.get(key)
    # a detail that is missing, of another length or no number confirms nothing
    if isinstance(values, list) and len(values) == count and all(isinstance(v, int | float) for v in values):
        return list(values)
    return [-1.0] * count


def _combine(
    standings: Mapping[str, _Standing], nulls: Mapping[str, Null], clean: Array
) -> tuple[float | None, Array | None, float]:
    """The p-value of the whole, those of labels (K,), and the lowest that any evidence could have."""
    labelled = {n: len(s.units) for n, s in standings.items() if by_label(n)}
    if not labelled:
        return None, None, 1.0
    classes = max(labelled.values())
    simulated = combined_null(nulls, {n: outlier_null(count, nulls[n]) for n, count in labelled.items()}, classes)
    labels = extended_tail(clean, simulated, combined({name: s.units for name, s in standings.items()}))
    return float(labels.min()), labels, float(extended_tail(clean, simulated, math.inf))


def _result(
    name: str,
    found: SeenEvidence | None,
    unread: Mapping[str, Reason],
    standing: _Standing | None,
    null: Null | None,
    level: float,
) -> MethodResult:
    if found is None:
        return MethodResult(name, failure=unread.get(name, Reason(Code.DID_NOT_RUN, name)))
    if standing is None or null is None:
        return MethodResult(name, found.statistic, failure=unread.get(name, Reason(Code.ANSWERED_TWICE, name)))
    alarmed = standing.p_value <= level
    shown: dict[str, Any] = {
        "values": [round(float(v), 4) for v in null.raw],
        "cutoff": round(null.least, 4),
        "floor": round(null.floor, 4),
    }
    if null.usual is not None:
        # in the unit of the values
        shown["statistic"] = round(farthest(null.less_usual(found.scores.tolist())), 4)
    return MethodResult(
        name, found.statistic, round(standing.p_value, 5), alarmed, standing.alarming if alarmed else (), None, shown
    )


def _proven_result(found: SeenEvidence, reasons: Sequence[Reason]) -> MethodResult:
    labels = sorted({reason.label for reason in reasons if reason.label is not None})
    return MethodResult(found.method, found.statistic, alarmed=bool(reasons), suspects=tuple(labels), counted=True)


def _unproven(standings: Mapping[str, _Standing], p_value: float | None, level: float) -> list[Reason]:
    named = sorted({label for s in standings.values() for label in s.alarming})
    if named:
        return [Reason(Code.TRIGGER_NOT_CONFIRMED, label=label) for label in named]
    return [Reason(Code.NO_LABEL_NAMED, figures={"p_value": p_value, "level": level})]


def _why(label: int, evidence: Mapping[str, SeenEvidence], standings: Mapping[str, _Standing]) -> Reason:
    """That a label is confirmed, by the weightiest method that did it; the size of its trigger, where that is one."""
    method = max((n for n in sorted(standings) if label in standings[n].confirmed), key=weight_of)
    role, found = _role(method), evidence[method]
    if role.confirm in MEASURED_AGAIN:
        share = _details(found, "share", len(found.scores))[label]
        if role.confirm is Confirm.MISLABELLED:
            return Reason(Code.MISLABELLED, method, label, {"share": share})
        return Reason(Code.REPEATED, method, label, {"share": share, "classes": len(found.scores)})
    if not role.mask_sizes:
        return Reason(Code.CONFIRMED, method, label)
    norms, held_out = (_details(found, key, len(found.scores)) for key in ("norms", "held_out"))
    figures = {"norm": norms[label], "median": float(np.median(norms)), "held_out": held_out[label]}
    return Reason(Code.TRIGGER, method, label, figures)


def _not_alike(method: str) -> Reason:
    """That a method found no references of the subject's kind, and so did not count."""
    return Reason(Code.OTHER_ARCHITECTURES if _role(method).by_architecture else Code.OTHER_DATA_SETS, method)


def _rates(peers: Sequence[Reference], own: int, level: float) -> dict[str, Any]:
    return {
        "references": len(peers),
        "data": sorted({r.data for r in peers}),
        # enough to say where the model's own data set lies; the tail may still be pooled
        "own_data": own >= ENOUGH,
        "level": level,
    }


def _other_size(peers: Sequence[Reference], data_sha256: str | None, input_shape: Sequence[int]) -> Reason | None:
    """That references on the model's own data take images of another size; None when some take such images."""
    theirs = {r.image for r in peers if r.data_sha256 == data_sha256}
    if not theirs or tuple(input_shape) in theirs:
        return None
    figures = {"given": _size(input_shape), "theirs": ", ".join(map(_size, sorted(theirs)))}
    return Reason(Code.OTHER_IMAGE_SIZE, figures=figures)


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _elsewhere(calibration: Calibration, about: Mapping[str, Any]) -> Reason:
    """That a verdict rests on other data sets, and how often clean models of a set left out raised an alarm there."""
    left, pooled = calibration.bank.transfer.get("data", {}).values(), ", ".join(about["data"])
    if not left:
        return Reason(Code.ELSEWHERE, figures={"data": pooled})
    measured = {"models": sum(one.models for one in left), "alarms": sum(one.alarms for one in left)}
    return Reason(Code.ELSEWHERE_MEASURED, figures={"data": pooled, **measured})

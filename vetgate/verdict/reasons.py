"""Reasons as records: what a verdict rests on, why it is out of date, why a finding is not waived.

They are codes and figures; text is only made of them, in `wording`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vetgate.errors import VetgateError

Figure = int | float | str | bool | None


class Bearing(StrEnum):
    """What a reason does to a verdict: names what was found, leaves a question open, or is only told."""

    NAMED = "named"
    # evidence that is rare among clean models and yet proves nothing; at the rate of a rescan it is no question
    UNPROVEN = "unproven"
    # about a method as such: whatever it is, a waiver of it covers the method
    METHOD = "method"
    OPEN = "open"
    NOTE = "note"


class Code(StrEnum):
    """Why a verdict is as it is, out of date or not waived. No code changes its meaning: waivers are made of codes."""

    bearing: Bearing

    def __new__(cls, value: str, bearing: Bearing) -> Code:
        """A code with its bearing."""
        made = str.__new__(cls, value)
        made._value_ = value
        made.bearing = bearing
        return made

    # found
    TRIGGER = "trigger", Bearing.NAMED
    CONFIRMED = "confirmed", Bearing.NAMED
    REPEATED = "repeated", Bearing.NAMED
    MISLABELLED = "mislabelled", Bearing.NAMED
    POISONED_DATA = "poisoned-data", Bearing.NAMED
    STRUCTURAL_BACKDOOR = "structural-backdoor", Bearing.NAMED
    # found, but nothing is proven
    TRIGGER_NOT_CONFIRMED = "trigger-not-confirmed", Bearing.UNPROVEN
    NO_LABEL_NAMED = "no-label-named", Bearing.UNPROVEN
    # a method that could not be read
    DID_NOT_RUN = "did-not-run", Bearing.METHOD
    FAILED = "failed", Bearing.METHOD
    ANSWERED_TWICE = "answered-twice", Bearing.METHOD
    NO_WEIGHT = "no-weight", Bearing.METHOD
    NOT_FINITE = "not-finite", Bearing.METHOD
    SCORES_MISFIT = "scores-misfit", Bearing.METHOD
    TRIGGER_MISFIT = "trigger-misfit", Bearing.METHOD
    CLASSES_MISFIT = "classes-misfit", Bearing.METHOD
    NO_CALIBRATION = "no-calibration", Bearing.METHOD
    NO_REFERENCES = "no-references", Bearing.METHOD
    OTHER_PARAMETERS = "other-parameters", Bearing.METHOD
    OTHER_REFERENCES = "other-references", Bearing.METHOD
    OTHER_CODE = "other-code", Bearing.METHOD
    TOO_FEW_REFERENCES = "too-few-references", Bearing.METHOD
    FEW_CLASSES = "few-classes", Bearing.METHOD
    SURROGATES = "surrogates", Bearing.METHOD
    REQUIRED_NOT_COUNTED = "required-not-counted", Bearing.METHOD
    # what else could not be seen
    SEEDS_DIFFER = "seeds-differ", Bearing.OPEN
    FORMAT_NOT_ACCEPTED = "format-not-accepted", Bearing.OPEN
    SANDBOX_TOO_WEAK = "sandbox-too-weak", Bearing.OPEN
    OTHER_DATA = "other-data", Bearing.OPEN
    NOTHING_INSPECTED = "nothing-inspected", Bearing.OPEN
    NO_TRIGGER_FOUND = "no-trigger-found", Bearing.OPEN
    STRUCTURE_NOT_EXPLAINED = "structure-not-explained", Bearing.OPEN
    LABELS_NOT_LOOKED_AT = "labels-not-looked-at", Bearing.OPEN
    RESCAN_OUT_OF_REACH = "rescan-out-of-reach", Bearing.OPEN
    SECOND_RUN_DIFFERS = "second-run-differs", Bearing.OPEN
    REFUSED = "refused", Bearing.OPEN
    GIVEN_UP = "given-up", Bearing.OPEN
    NOT_CANONICAL = "not-canonical", Bearing.OPEN
    NO_SKILL = "no-skill", Bearing.OPEN
    READ_WRONGLY = "read-wrongly", Bearing.OPEN
    # told, and held against nothing
    NOTHING_STANDS_OUT = "nothing-stands-out", Bearing.NOTE
    UNCALIBRATED = "uncalibrated", Bearing.NOTE
    SEARCHED_IN_PART = "searched-in-part", Bearing.NOTE
    DRIVEN_IN_PART = "driven-in-part", Bearing.NOTE
    NOT_COUNTED = "not-counted", Bearing.NOTE
    OTHER_ARCHITECTURES = "other-architectures", Bearing.NOTE
    OTHER_DATA_SETS = "other-data-sets", Bearing.NOTE
    ELSEWHERE = "elsewhere", Bearing.NOTE
    ELSEWHERE_MEASURED = "elsewhere-measured", Bearing.NOTE
    POOLED = "pooled", Bearing.NOTE
    OTHER_IMAGE_SIZE = "other-image-size", Bearing.NOTE
    EXTRAPOLATED = "extrapolated", Bearing.NOTE
    RESCAN_EXTRAPOLATED = "rescan-extrapolated", Bearing.NOTE
    RESCAN_NO_ALARM = "rescan-no-alarm", Bearing.NOTE
    WAIVED_UNTIL = "waived-until", Bearing.NOTE
    REPAIR_FAILED = "repair-failed", Bearing.NOTE
    REPAIR_NOT_GOOD_ENOUGH = "repair-not-good-enough", Bearing.NOTE
    REPAIR_SKIPPED = "repair-skipped", Bearing.NOTE
    REPAIR_UNMEASURED = "repair-unmeasured", Bearing.NOTE
    REPAIR_UNCONFIRMED = "repair-unconfirmed", Bearing.NOTE
    REPAIR_NOT_TRIED = "repair-not-tried", Bearing.NOTE
    # why a verdict is out of date
    TOO_OLD = "too-old", Bearing.NOTE
    METHOD_ADDED = "method-added", Bearing.NOTE
    METHOD_REMOVED = "method-removed", Bearing.NOTE
    CODE_CHANGED = "code-changed", Bearing.NOTE
    PARAMETERS_CHANGED = "parameters-changed", Bearing.NOTE
    POLICY_CHANGED = "policy-changed", Bearing.NOTE
    CALIBRATION_CHANGED = "calibration-changed", Bearing.NOTE
    GUARDS_CHANGED = "guards-changed", Bearing.NOTE
    DATA_CHANGED = "data-changed", Bearing.NOTE
    # why a finding is not waived
    NO_WAIVER = "no-waiver", Bearing.NOTE
    WAIVERS_NOT_ALLOWED = "waivers-not-allowed", Bearing.NOTE
    NEVER_WAIVED_UNREAD = "never-waived-unread", Bearing.NOTE
    NEVER_WAIVED_UNEXPLAINED = "never-waived-unexplained", Bearing.NOTE
    NEVER_WAIVED_UNSIGNED = "never-waived-unsigned", Bearing.NOTE
    WAIVER_REVOKED = "waiver-revoked", Bearing.NOTE
    WAIVER_EXPIRED = "waiver-expired", Bearing.NOTE
    WAIVER_TOO_LONG = "waiver-too-long", Bearing.NOTE
    TOO_FEW_APPROVALS = "too-few-approvals", Bearing.NOTE


@dataclass(frozen=True)
class Reason:
    """One reason: its code, the method or label that it is about, and the figures that its text is made of."""

    code: Code
    method: str | None = None
    label: int | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # JSON has no NaN; a figure that is none is told as a word
        finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in self.figures.items()}
        object.__setattr__(self, "figures", finite)

    @property
    def bearing(self) -> Bearing:
        """What the reason does to a verdict."""
        return self.code.bearing

    @property
    def open(self) -> bool:
        """Whether it says what could not be seen or settled."""
        return self.bearing not in (Bearing.NAMED, Bearing.NOTE)

    @property
    def finding(self) -> str | None:
        """The id of what the reason holds against a model; the same whatever its figures and its text; None for notes.

        backdoor:label-<n>, structural-backdoor[:label-<n>], poisoned-data:<method>, inconclusive:<method>,
        inconclusive:<code>[:<method>][:label-<n>].
        """
        if self.bearing is Bearing.NOTE:
            return None
        if self.code is Code.STRUCTURAL_BACKDOOR:
            return self.code.value if self.label is None else f"{self.code.value}:label-{self.label}"
        if self.bearing is Bearing.NAMED:
            return f"poisoned-data:{self.method}" if self.label is None else f"backdoor:label-{self.label}"
        if self.bearing is Bearing.METHOD:
            return f"inconclusive:{self.method}"
        parts = [self.code.value, self.method, None if self.label is None else f"label-{self.label}"]
        return ":".join(["inconclusive", *(part for part in parts if part is not None)])

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        return {"code": self.code.value, "method": self.method, "label": self.label, "figures": dict(self.figures)}

    @classmethod
    def from_json(cls, blob: Mapping[str, Any]) -> Reason:
        """The Reason that `to_json` wrote; raises ValueError, KeyError or TypeError for anything else."""
        return cls(_CODES[blob["code"]], blob["method"], blob["label"], dict(blob["figures"]))


def of_error(error: VetgateError) -> Reason:
    """That a submission was refused with an error."""
    return Reason(Code.REFUSED, figures={"said": str(error), "error": error.code})


_CODES = {code.value: code for code in Code}


def records(reasons: Iterable[Reason]) -> list[dict[str, Any]]:
    """Reasons as the JSON objects that verdicts, attestations and results carry."""
    return [reason.to_json() for reason in reasons]

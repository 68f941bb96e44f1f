"""What a vetting comes to: the records of its repairs, and the one object that `vetgate vet --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vetgate.shape import Blob, Number, Shaped, added
from vetgate.verdict.accuracy_loss import AccuracyLoss
from vetgate.verdict.first_look import FirstLook


@dataclass(frozen=True)
class Measured(Shaped):
    """Shares of held-out images: rightly classified, and of those of other classes that carry a trigger, two more.

    `attack_success` are sent to its target by the strongest trigger, `robust_accuracy` are given their true class under
    the one that leaves fewest of them; None where there is no trigger to measure.
    """

    clean_accuracy: Number
    attack_success: Number | None
    robust_accuracy: Number | None


@dataclass(frozen=True)
class Compared(Shaped):
    """A model before and after its repair."""

    WHAT = "the figures of a repair"

    before: Measured
    after: Measured


@dataclass(frozen=True)
class Validated(Shaped):
    """A repair on the images for choosing, the same ones before and after.

    `after` is under the worst of all triggers; `found` is the success left to those that were found in the submitted
    model, `anew` that of those reversed anew; `natural` is what other labels' triggers of the same size do by nature.
    """

    before: Measured
    after: Measured
    lost: AccuracyLoss
    found: Number | None
    anew: Number | None
    natural: Number


@dataclass(frozen=True)
class TriggerSize(Shaped):
    """L1 norms, in pixels, of the smallest trigger for a label before a repair, and of the one reversed anew after."""

    label: int
    before: Number
    after: Number


@dataclass(frozen=True)
class RepairTriggers(Shaped):
    """The triggers that a repair is measured by: as they were found, and with those reversed anew afterwards.

    Those are cut to the size of the first; `sizes` are as they came.
    """

    before: tuple[Mapping[str, Any], ...]
    after: tuple[Mapping[str, Any], ...]
    sizes: tuple[TriggerSize, ...]


@dataclass(frozen=True)
class RepairRecord(Shaped):
    """A repair that ran; `about` is all that it depends on, `key` its digest, `files` a manifest."""

    WHAT = "the record of a repair"

    about: Mapping[str, Any]
    key: str
    method: str
    changed: Mapping[str, Number]
    seconds: Number
    files: Mapping[str, Any]
    triggers: RepairTriggers
    validate: Validated
    failure: None = None


@dataclass(frozen=True)
class RepairFailed(Shaped):
    """A repair that ended with an error, which is tried again by the next vetting."""

    WHAT = "a repair that failed"

    method: str
    failure: str


def repair_from_json(blob: object) -> RepairRecord | RepairFailed:
    """The one of the two that `to_json` wrote; raises StoreError for anything else."""
    if isinstance(blob, dict) and blob.get("failure") is not None:
        return RepairFailed.from_json(blob)
    return RepairRecord.from_json(blob)


@dataclass(frozen=True)
class GuardCost(Shaped):
    """Milliseconds of processor time of a prediction by the bare network and by the guarded one, and their ratio."""

    bare: Number
    guarded: Number
    slowdown: Number


@dataclass(frozen=True)
class ResultGuard(Shaped):
    """A run-time guard that the policy names; `reason` says why it was not chosen. None stands where not measured.

    `rate` is the share of clean inputs that it may reject, `false_rejections` the share of test images that it does;
    `detection` is the share of those that it rejects under the reversed triggers. `alone` is one image, `batch` are 64.
    """

    name: str
    chosen: bool
    reason: str | None = None
    rate: Number | None = None
    false_rejections: Number | None = None
    detection: Number | None = None
    alone: GuardCost | None = None
    batch: GuardCost | None = None


@dataclass(frozen=True)
class GuardRecord(Shaped):
    """The guards that were fitted for a model, `package` the SHA-256 of the file with the chosen ones, None without.

    `false_rejections` is the share of test images that any of the chosen ones rejects.
    """

    WHAT = "the record of guards"

    guards: tuple[ResultGuard, ...]
    package: str | None
    false_rejections: Number | None
    seconds: Number


@dataclass(frozen=True)
class ResultGuards(Shaped):
    """What guards the model where it is served: nothing, unless the attestation names the SHA-256 of a `package`."""

    package: str | None
    action: str
    rate: Number
    false_rejections: Number | None
    guards: tuple[ResultGuard, ...]
    seconds: Number


@dataclass(frozen=True)
class ResultMethod(Shaped):
    """One method in a result; `seconds` is None for one that did not run."""

    name: str
    statistic: Number | None
    alarmed: bool
    suspects: tuple[int, ...]
    failure: str | None
    seconds: Number | None
    # whether the decision could depend on it
    counted: bool | None = added()


@dataclass(frozen=True)
class ResultRepair(Shaped):
    """The repair that was chosen, with the verdict on what came of it; shares are before and after, on test images.

    None stands where there was no trigger to measure, or where an earlier version did not measure.
    """

    method: str
    artifact: str
    submission: str
    verdict: str
    p_value: Number | None
    clean_accuracy: tuple[Number, Number]
    attack_success: tuple[Number | None, Number | None]
    robust_accuracy: tuple[Number | None, Number | None] = (None, None)


class Standing(StrEnum):
    """What became of a repair that the policy names; NOT_PASSED: it was good enough, and its copy did not pass."""

    CHOSEN = "chosen"
    GOOD_ENOUGH = "good-enough"
    NOT_PASSED = "not-passed"
    NOT_GOOD_ENOUGH = "not-good-enough"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_TRIED = "not-tried"


@dataclass(frozen=True)
class CandidateFigures(Shaped):
    """A repair on the images for choosing; shares are before and after, None where there is no trigger to measure.

    `attack_success` is that of the triggers found in the submitted model, `anew` that of those reversed anew on the
    repaired one, cut to their size, and `natural` what triggers of this size do to other labels by nature.
    """

    clean_accuracy: tuple[Number, Number]
    lost: AccuracyLoss
    attack_success: tuple[Number | None, Number | None]
    anew: Number | None
    natural: Number
    robust_accuracy: tuple[Number | None, Number | None]
    trigger_sizes: tuple[TriggerSize, ...]
    seconds: Number


@dataclass(frozen=True)
class ResultCandidate(Shaped):
    """A repair that the policy names: what became of it, its figures if it ran, and why it was not good enough.

    `submission` and `verdict` are of its copy, None where that was not vetted.
    """

    method: str
    standing: Standing
    figures: CandidateFigures | None
    reason: str | None
    reason_record: Mapping[str, Any] | None
    submission: str | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class Result(Shaped):
    """What a vetting came to, and where its report and attestation lie."""

    WHAT = "the result of a vetting"

    submission: str
    manifest_sha256: str
    verdict: str
    p_value: Number | None
    calibrated: bool
    suspects: tuple[int, ...]
    methods: tuple[ResultMethod, ...]
    repair: ResultRepair | None
    report: str
    attestation: str
    mlflow_run: str | None
    sandbox_level: int
    seconds: Number
    reasons: tuple[str, ...]
    reason_records: tuple[Mapping[str, Any], ...]
    # what earlier versions wrote has none
    repairs: tuple[ResultCandidate, ...] = ()
    # None where none were to be fitted, or by an earlier version
    guards: ResultGuards | None = None
    # the manifest of what was handed in, where vetgate wrote other bytes in its place
    submitted_sha256: str | None = None
    # None without trusted images, or by an earlier version
    first_look: FirstLook | None = None
    # of what the network has learned, the same whatever form it was handed in
    weights_sha256: str | None = None
    # how tensors of the file that was handed in were matched with those of the network, where not by name
    match_weights_by: str | None = None


@dataclass(frozen=True)
class NotTakenIn:
    """What stands in place of a result for a directory of which nothing was kept."""

    submission: str
    seconds: float
    reasons: tuple[str, ...]
    reason_records: tuple[Mapping[str, Any], ...]
    verdict: str = "INCONCLUSIVE"

    def to_json(self) -> Blob:
        """A JSON object with the keys of a result."""
        absent = ("manifest_sha256", "p_value", "repair", "report", "attestation", "mlflow_run")
        return {
            "submission": self.submission,
            **dict.fromkeys(absent),
            "verdict": self.verdict,
            "calibrated": False,
            "suspects": [],
            "methods": [],
            "sandbox_level": None,
            "seconds": self.seconds,
            "reasons": [*self.reasons],
            "reason_records": [*self.reason_records],
            "repairs": [],
            "guards": None,
            "submitted_sha256": None,
            "first_look": None,
            "weights_sha256": None,
            "match_weights_by": None,
        }

"""What a vetting comes to: the records of its repairs, and the one object that `vetgate vet --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vetgate.shape import Blob, Number, Shaped


@dataclass(frozen=True)
class Measured(Shaped):
    """Shares of held-out images: rightly classified, and sent to its target by the strongest trigger."""

    clean_accuracy: Number
    attack_success: Number


@dataclass(frozen=True)
class Compared(Shaped):
    """A model before and after its repair."""

    WHAT = "the figures of a repair"

    before: Measured
    after: Measured


@dataclass(frozen=True)
class Validated(Shaped):
    """A repair on the images for choosing; `natural` is what other labels' triggers of the same size do by nature."""

    before: Measured
    after: Measured
    natural: Number


@dataclass(frozen=True)
class RepairTriggers(Shaped):
    """The triggers that a repair is measured by: as they were found, and with those reversed anew afterwards."""

    before: tuple[Mapping[str, Any], ...]
    after: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class RepairRecord(Shaped):
    """A repair that ran, as the store keeps it under its key; `about` is all that it depends on, `files` a manifest."""

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
class ResultMethod(Shaped):
    """One method in a result; `seconds` is None for one that did not run."""

    name: str
    statistic: Number | None
    alarmed: bool
    suspects: tuple[int, ...]
    failure: str | None
    seconds: Number | None


@dataclass(frozen=True)
class ResultRepair(Shaped):
    """The repair that was chosen, with the verdict on what came of it; shares are before and after, on test images."""

    method: str
    artifact: str
    submission: str
    verdict: str
    p_value: Number | None
    clean_accuracy: tuple[Number, Number]
    attack_success: tuple[Number, Number]


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
        }

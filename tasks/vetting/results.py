"""The result of a vetting: the one object that `vetgate vet --json` prints and the store keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vetgate import shape
from vetgate.shape import STRICT, Blob, Number


@dataclass(frozen=True)
class ResultMethod:
    """One method in a result; `seconds` is None for one that did not run."""

    __pydantic_config__ = STRICT

    name: str
    statistic: Number | None
    alarmed: bool
    suspects: tuple[int, ...]
    failure: str | None
    seconds: Number | None


@dataclass(frozen=True)
class ResultRepair:
    """The repair that was chosen, with the verdict on what came of it; shares are before and after, on test images."""

    __pydantic_config__ = STRICT

    method: str
    artifact: str
    submission: str
    verdict: str
    p_value: Number | None
    clean_accuracy: tuple[Number, Number]
    attack_success: tuple[Number, Number]


@dataclass(frozen=True)
class Result:
    """What a vetting came to, and where its report and attestation lie."""

    __pydantic_config__ = STRICT

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

    def to_json(self) -> Blob:
        """A JSON object that `from_json` reads."""
        return dict(shape.to_json(self))

    @classmethod
    def from_json(cls, blob: object) -> Result:
        """The result that `to_json` wrote; raises StoreError for anything else."""
        return shape.from_json(cls, blob, "the result of a vetting")

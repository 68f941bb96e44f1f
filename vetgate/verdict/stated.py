"""A verdict as it travels: what `Verdict.to_json` writes, for those who read verdicts and load no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vetgate import shape
from vetgate.shape import STRICT, Blob, Number


@dataclass(frozen=True)
class StatedMethod:
    """One method in a verdict, its failure in words."""

    __pydantic_config__ = STRICT

    name: str
    statistic: Number | None
    p_value: Number | None
    alarmed: bool
    suspects: tuple[int, ...]
    failure: str | None
    null: Mapping[str, Any] | None


@dataclass(frozen=True)
class StatedVerdict:
    """The decision and what it rests on: `reason_records` for what decides, `reasons` in words for people."""

    __pydantic_config__ = STRICT

    decision: str
    p_value: Number | None
    calibrated: bool
    suspects: tuple[int, ...]
    methods: tuple[StatedMethod, ...]
    reasons: tuple[str, ...]
    calibration: Mapping[str, Any] | None
    reason_records: tuple[Mapping[str, Any], ...]

    def to_json(self) -> Blob:
        """A JSON object that `from_json` reads."""
        return dict(shape.to_json(self))

    @classmethod
    def from_json(cls, blob: object) -> StatedVerdict:
        """What `Verdict.to_json` or `to_json` wrote; raises StoreError for anything else."""
        return shape.from_json(cls, blob, "a verdict")

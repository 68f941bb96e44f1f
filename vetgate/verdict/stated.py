"""A verdict as it travels: what `Verdict.to_json` writes, for those who read verdicts and load no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vetgate.shape import Number, Shaped, added


@dataclass(frozen=True)
class StatedMethod(Shaped):
    """One method in a verdict, its failure in words."""

    name: str
    statistic: Number | None
    p_value: Number | None
    alarmed: bool
    suspects: tuple[int, ...]
    failure: str | None
    null: Mapping[str, Any] | None
    counted: bool | None = added()


@dataclass(frozen=True)
class StatedVerdict(Shaped):
    """The decision and what it rests on: `reason_records` for what decides, `reasons` in words for people."""

    WHAT = "a verdict"

    decision: str
    p_value: Number | None
    calibrated: bool
    suspects: tuple[int, ...]
    methods: tuple[StatedMethod, ...]
    reasons: tuple[str, ...]
    calibration: Mapping[str, Any] | None
    reason_records: tuple[Mapping[str, Any], ...]

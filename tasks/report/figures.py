"""The geometry of a report's figures, in the coordinates that the template draws: numbers only, no markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH = 300.0
MARGIN = 10.0


@dataclass(frozen=True)
class Strip:
    """Where one statistic falls among those of clean reference models, on a line of WIDTH."""

    ticks: tuple[float, ...]
    band: tuple[float, float] | None
    alarm: float | None
    position: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Bar:
    """One label's bar: its length as a share of the longest."""

    label: int
    value: float
    length: float
    suspect: bool


@dataclass(frozen=True)
class Histogram:
    """Bars (x, height) in a box of WIDTH x 60, and where the cutoff falls."""

    bars: tuple[tuple[float, float], ...]
    step: float
    cutoff: float | None
    low: float
    high: float


def strip(statistic: float | None, null: Mapping[str, Any] | None) -> Strip | None:
    """A strip from a null given as {"values": […]} or {"quantiles": {"0.05": …}}, with "cutoff" if there is one.

    "statistic" is the model's own in the unit of the values, where that is another.
    """
    if statistic is None or not null:
        return None
    statistic = next(iter(_finite([null.get("statistic")])), statistic)
    values = sorted(_finite(null.get("values") or ()))
    quantiles = {float(p): q for p, q in (null.get("quantiles") or {}).items() if _is_number(q)}
    if values:
        band: tuple[float, float] | None = (float(np.quantile(values, 0.05)), float(np.quantile(values, 0.95)))
    else:
        band = (quantiles[min(quantiles)], quantiles[max(quantiles)]) if quantiles else None
        values = sorted(quantiles.values())
    if not values or not math.isfinite(statistic):
        return None
    cutoff = _finite([null.get("cutoff")])
    alarm = cutoff[0] if cutoff else None
    every = [*values, statistic, *([] if alarm is None else [alarm])]
    low, high = min(every), max(every)
    reach = (high - low) or 1.0

    def place(value: float) -> float:
        return round(MARGIN + (value - low) / reach * (WIDTH - 2 * MARGIN), 2)

    above = sum(v >= statistic for v in values)
    words = f"this model {statistic:.4g}; {len(values)} reference values from {values[0]:.4g} to {values[-1]:.4g}, "
    return Strip(
        ticks=tuple(place(v) for v in values),
        band=None if band is None else (place(band[0]), place(band[1])),
        alarm=None if alarm is None else place(alarm),
        position=place(statistic),
        low=low,
        high=high,
        words=words + (f"{above} of them as high" if above else "none as high"),
    )


def bars(values: Mapping[int, float], suspects: Sequence[int]) -> list[Bar]:
    """One bar for each label, in the order of the labels; negative values have none."""
    shown = {label: value for label, value in sorted(values.items()) if math.isfinite(value)}
    longest = max([1e-12, *shown.values()])
    return [Bar(k, v, max(0.0, v / longest), k in suspects) for k, v in shown.items()]


def histogram(scores: Sequence[float], cutoff: float | None, bins: int = 40) -> Histogram | None:
    """How the scores of rows or inputs are spread; heights grow with the root, so that a few rows are seen."""
    finite = _finite(scores)
    if not finite:
        return None
    low, high = min(finite), max(finite)
    if high == low:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(finite, bins, (low, high))
    step = WIDTH / bins
    top = math.sqrt(max(counts))
    bars = tuple((round(i * step, 2), round(60 * math.sqrt(count) / top, 2)) for i, count in enumerate(counts))
    within = cutoff is not None and low <= cutoff <= high
    place = (cutoff - low) / (high - low) * WIDTH if within and cutoff is not None else None
    return Histogram(bars, step, place, low, high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite(values: Sequence[Any]) -> list[float]:
    return [float(v) for v in values if _is_number(v)]

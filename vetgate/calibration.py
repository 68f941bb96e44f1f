"""What clean models look like: the null distributions that turn statistics into p-values.

A calibration holds the evidence of every detector on clean reference models, bound by digest to code, parameters and
data. From it come, for a model with K classes, the null of each method and of the combined score. Label norms are
standardised with a scale that has a floor, and their null is simulated for K labels, so that ten classes and
forty-three are each held to their own tail.

Source    The simulated null follows from the observation that "index > 2" is a statement about one label, not a model;
          p-values are (1 + #{null >= s}) / (n + 1), as in conformal prediction (Vovk et al., 2005).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from vetgate.digest import code_digest, sha256_json
from vetgate.errors import BadPolicy

Array = NDArray[np.float64]

SHIPPED = Path(__file__).parent.parent / "infra" / "calibration" / "default.json"
# own references of a data set stand alone from this many on; below, all references are pooled
ENOUGH = 8
DRAWS = 20_000
# how much each method's standardised statistic counts in the combined score; fixed before any model was looked at
WEIGHTS = {"neural_cleanse": 1.0, "abs": 0.5, "spectral_signatures": 0.5, "activation_clustering": 0.5}
# 1.4826 makes a median of absolute deviations estimate sigma for normal data
TO_SIGMA = 1.4826
CLIP = 4.0


class Seen(BaseModel, frozen=True, extra="forbid"):
    """What one detector gave on one reference model; scores only where they run over classes."""

    statistic: float
    scores: tuple[float, ...] | None = None


class Reference(BaseModel, frozen=True, extra="forbid"):
    """One clean model: what it is, how good it is, and what every detector gave on it."""

    data: str
    data_sha256: str
    architecture: str
    classes: int
    seed: int
    accuracy: float
    seen: dict[str, Seen]


class MethodPin(BaseModel, frozen=True, extra="forbid"):
    """The code and parameters that the references' evidence was made with."""

    code: str
    params: dict[str, int | float | str | bool | None]


class Bank(BaseModel, frozen=True, extra="forbid"):
    """The file: pinned methods and their evidence on clean reference models."""

    methods: dict[str, MethodPin]
    references: tuple[Reference, ...]


@dataclass(frozen=True, eq=False)
class Null:
    """The null of one method for one subject, from clean models.

    The scale's floor, their label scales, the least effect that counts, and their statistics, standardised and raw.
    """

    floor: float
    scales: Array
    least: float
    statistics: Array
    raw: Array


@dataclass(frozen=True, eq=False)
class Calibration:
    """A loaded bank with its identity, and why it does not fit the code at hand (empty when it does)."""

    bank: Bank
    id: str
    stale: tuple[str, ...] = field(default=())

    def mismatch(self, method: str, params: Mapping[str, Any]) -> str | None:
        """Why this calibration says nothing about a method run with these parameters; None when it fits."""
        pin = self.bank.methods.get(method)
        if pin is None:
            return f"the calibration holds no references for {method}; rebuild it with `dvc repro`"
        if pin.params != dict(params):
            return f"{method} ran with other parameters than its references; restore params.yaml or recalibrate"
        return next((reason for reason in self.stale if reason.startswith(f"{method} ")), None)

    def references(self, method: str, data_sha256: str | None) -> list[Reference]:
        """The references that stand for a subject: those of its own data set when there are enough, else all."""
        holding = [r for r in self.bank.references if method in r.seen]
        own = [r for r in holding if r.data_sha256 == data_sha256]
        return own if len(own) >= ENOUGH else holding

    def null(self, method: str, data_sha256: str | None) -> Null:
        """The null of a method for subjects on this data set; raises BadPolicy when no reference holds it.

        Pooled over data sets, the floor and the least effect are those of the set where they are smallest: a bound
        that holds everywhere would hide what stands out in a narrow one.
        """
        chosen = self.references(method, data_sha256)
        if not chosen:
            raise BadPolicy(f"the calibration holds no references for {method}; rebuild it with `dvc repro`")
        floors, leasts, scales, statistics = [], [], [], []
        for name in sorted({r.data for r in chosen}):
            seen = [r.seen[method] for r in chosen if r.data == name]
            values = np.array([s.statistic for s in seen])
            own = np.array([lower_scale(s.scores) if s.scores else np.nan for s in seen])
            spread = float(np.median(own)) if np.isfinite(own).all() else _spread(values)
            floors.append(spread)
            leasts.append(float(values.max()))
            scales.append(own)
            # centred within the data set, so that pooling compares like with like
            statistics.append((values - np.median(values)) / max(_spread(values), 1e-6))
        raw = np.sort([r.seen[method].statistic for r in chosen])
        return Null(min(floors), np.concatenate(scales), min(leasts), np.concatenate(statistics), raw)

    def standardise(self, method: str, value: float, data_sha256: str | None) -> float:
        """A method's statistic in units of the clean references' spread around their median, within +-CLIP."""
        chosen = self.references(method, data_sha256)
        sets = [[r.seen[method].statistic for r in chosen if r.data == d] for d in sorted({r.data for r in chosen})]
        units = [(value - float(np.median(v))) / max(_spread(np.array(v)), 1e-6) for v in sets]
        return float(np.clip(min(units), -CLIP, CLIP))


def load_calibration(path: Path | None = None) -> Calibration | None:
    """The calibration in a JSON file, by default the shipped one; None when there is no file. Raises BadPolicy."""
    where = path or SHIPPED
    if not where.exists():
        if path is not None:
            raise BadPolicy(f"expected a calibration at {where}, got no file; build one with `dvc repro`")
        return None
    try:
        raw = json.loads(where.read_text())
        bank = Bank.model_validate(raw)
    except (OSError, ValueError, ValidationError) as error:
        raise BadPolicy(f"{where} is not a calibration: {error}; restore it or rebuild it with `dvc repro`") from error
    stale = tuple(
        f"{name} has changed since its references were made; rebuild the calibration with `dvc repro`"
        for name, pin in sorted(bank.methods.items())
        if pin.code != code_digest("detect", name)
    )
    return Calibration(bank, sha256_json(raw), stale)


def lower_scale(scores: Sequence[float]) -> float:
    """Robust scale of the suspicious half of class scores: 1.4826 times the median distance of those above the median.

    The other half stops early when inverted and says nothing about how close clean labels come.
    """
    values = np.asarray(scores, dtype=np.float64)
    above = values - np.median(values)
    return float(TO_SIGMA * np.median(above[above >= 0]))


def outliers(scores: Sequence[float], floor: float) -> Array:
    """Distance (K,) of class scores above their median, in units of the lower scale or the floor."""
    values = np.asarray(scores, dtype=np.float64)
    return np.asarray((values - np.median(values)) / max(lower_scale(scores), floor, 1e-6))


def outlier_null(classes: int, null: Null, *, draws: int = DRAWS) -> Array:
    """Sorted largest outliers (draws,) of clean models with K labels whose scales are drawn from the references'."""
    stream = np.random.default_rng(classes)
    draws = min(draws, 8_000_000 // classes)
    scores = stream.standard_normal((draws, classes)) * stream.choice(null.scales, draws)[:, None]
    above = scores - np.median(scores, axis=1, keepdims=True)
    half = np.where(above >= 0, above, np.nan)
    scale = np.maximum(TO_SIGMA * np.nanmedian(half, axis=1), max(null.floor, 1e-6))
    return np.sort(above.max(1) / scale)


def tail(null: Array, values: Array | float) -> Array:
    """p-values (1 + #{null >= v}) / (n + 1) of values under a sorted null (n,)."""
    at_least = len(null) - np.searchsorted(null, values, side="left")
    return np.asarray((1 + at_least) / (len(null) + 1), dtype=np.float64)


def normal_score(p: Array | float) -> Array:
    """Standard normal score of one-sided p-values, within +-CLIP."""
    flat = np.clip(np.atleast_1d(np.asarray(p, dtype=np.float64)), 1e-9, 1 - 1e-9)
    return np.clip([NormalDist().inv_cdf(1 - v) for v in flat], -CLIP, CLIP)


def combined_null(nulls: Mapping[str, Null], *, draws: int = DRAWS) -> Array:
    """Sorted combined scores (draws,) of clean models: a normal score and resampled reference statistics."""
    stream = np.random.default_rng(0)
    total = WEIGHTS["neural_cleanse"] * np.clip(stream.standard_normal(draws), -CLIP, CLIP)
    for name in sorted(set(nulls) - {"neural_cleanse"}):
        total = total + WEIGHTS[name] * np.clip(stream.choice(nulls[name].statistics, draws), -CLIP, CLIP)
    return np.sort(total)


def _spread(values: Array) -> float:
    return float(TO_SIGMA * np.median(np.abs(values - np.median(values))))

"""Choose on one half, confirm on the other: how well a statistic tells backdoored members of the bank from clean ones.

A statistic gives every member a score per label, or one number. Scores are held against those of clean members of the
same data set, never against the member's own; the model's statistic is its most suspicious label. Data sets are pooled
in units of their clean members' spread.

Source    Splitting what is chosen on from what is judged on: Cox, 1975, Biometrika 62. p-values are conformal.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vetgate.verdict.calibration import less_usual, spread_of, tail, usual_of
from vetgate.verdict.metrics import auroc, interval, share

Array = NDArray[np.float64]
LEVEL = 0.05


@dataclass(frozen=True)
class Network:
    """A member as scores are judged: `kind` is clean, backdoored or failed attack; `target` where there is one."""

    name: str
    data: str
    architecture: str
    attack: str
    kind: str
    target: int | None


Column = Mapping[str, Array]
"""Scores by member: (K,) one a label, or (1,) one a model; higher is more suspicious."""

Null = Callable[[Column, Network, Sequence[Network]], Array]


def of_the_model(column: Column, member: Network, clean: Sequence[Network]) -> Array:
    """Labels against the median label of the same model."""
    return _centred(column[member.name])


def of_the_label(column: Column, member: Network, clean: Sequence[Network]) -> Array:
    """Labels against what the same label comes to in clean models on the same data."""
    return _centred(column[member.name]) - np.median([_centred(column[c.name]) for c in clean], axis=0)


def of_the_architecture(column: Column, member: Network, clean: Sequence[Network]) -> Array:
    """Labels against the same label in clean models of the data, drawn towards the architecture as in a verdict."""
    rows = np.array([_centred(column[c.name]) for c in clean])
    return _centred(column[member.name]) - usual_of(rows, [c.architecture for c in clean], member.architecture)


NULLS: dict[str, Null] = {
    "model": of_the_model,
    "label": of_the_label,
    "label, architecture": of_the_architecture,
}


def _centred(scores: Array) -> Array:
    # a number for a model is no label among others
    return less_usual(scores.tolist(), None) if len(scores) > 1 else scores


def half_of(members: Sequence[Network]) -> dict[str, bool]:
    """Whether a member is in the half to choose on: every other one of its data set and attack, by digests of names."""
    groups: dict[tuple[str, str], list[str]] = {}
    for m in members:
        groups.setdefault((m.data, m.attack), []).append(m.name)
    chosen = {}
    for group, names in groups.items():
        ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        # groups of one fall on either side
        first = hashlib.sha256(repr(group).encode()).digest()[0] % 2
        chosen |= {name: place % 2 == first for place, name in enumerate(ordered)}
    return chosen


def statistics(column: Column, members: Sequence[Network], null: Null) -> dict[str, tuple[float, int]]:
    """Each member's statistic in units of the clean members of its data set, itself left out, and its worst label."""
    measured = [m for m in members if m.name in column]
    broken = [m.name for m in measured if not np.isfinite(column[m.name]).all()]
    if broken:
        # NaN compares as less than everything, and would count as clean
        raise ValueError(f"expected finite scores, got others of {', '.join(broken)}; correct the candidate")
    found = {}
    for data in sorted({m.data for m in measured}):
        clean = [m for m in measured if m.data == data and m.kind == "clean"]
        raw: dict[str, tuple[float, int]] = {}
        for m in (m for m in measured if m.data == data):
            above = null(column, m, [c for c in clean if c.name != m.name])
            raw[m.name] = (float(above.max()), int(above.argmax()))
        for name, (value, label) in raw.items():
            others = np.array([raw[c.name][0] for c in clean if c.name != name])
            found[name] = ((value - float(np.median(others))) / max(spread_of(others), 1e-6), label)
    return found


def score(column: Column, members: Sequence[Network], null: Null) -> dict[str, Any]:
    """How a column does under a null, on each half: AUROC, share detected at 5 %, alarms on clean ones, right labels.

    Detected is what exceeds all but 5 % of the clean members of both halves; a clean one is not held against itself.
    """
    chosen = half_of(members)
    found = statistics(column, members, null)
    clean = {m.name: found[m.name][0] for m in members if m.kind == "clean" and m.name in found}
    every = np.sort(list(clean.values()))

    def alarm(member: Network) -> bool:
        others = np.delete(every, np.searchsorted(every, clean[member.name])) if member.name in clean else every
        return float(tail(others, found[member.name][0])) <= LEVEL

    out: dict[str, Any] = {}
    for half in ("choose", "confirm"):
        of_half = [m for m in members if m.name in found and chosen[m.name] == (half == "choose")]
        bad = [m for m in of_half if m.kind == "backdoored"]
        good = [m for m in of_half if m.kind == "clean"]
        groups = [np.array([found[m.name][0] for m in kind]) for kind in (good, bad)]
        hits = np.array([alarm(m) for m in bad], dtype=float)
        named = [m for m, hit in zip(bad, hits, strict=True) if hit and m.target is not None]
        out[half] = {
            "clean": len(good),
            "backdoored": len(bad),
            "auroc": _rounded(auroc(*groups)),
            "auroc_interval": [_rounded(v) for v in interval(groups, auroc)],
            "detected": _rounded(share(hits)),
            "detected_interval": [_rounded(v) for v in interval([hits], share)],
            "false_alarms": sum(alarm(m) for m in good),
            "right_label": [sum(found[m.name][1] == m.target for m in named), len(named)],
            "by_attack": {
                attack: [sum(alarm(m) for m in bad if m.attack == attack), sum(m.attack == attack for m in bad)]
                for attack in sorted({m.attack for m in bad})
            },
        }
    return out


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)

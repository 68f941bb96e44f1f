"""Which rows serve which purpose, and images of one size as images of another. Pure numpy.

x_train is split once: every row has one purpose for good, whatever number of rows is then taken. Rows of one
(class, track) are frames of one thing, so a track serves one purpose only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

SHARES = {"invert": 0.25, "confirm": 0.15, "repair": 0.40, "validate": 0.20}


def partition(y: Rows, track: NDArray[np.integer] | None, seed: int) -> dict[str, Rows]:
    """The rows of labels y (N,) by purpose, ascending, in the proportions SHARES within each class.

    Four images of a class, or four tracks, are enough for one to each purpose.
    """
    random = np.random.RandomState(seed)
    taken: dict[str, list[Rows]] = {purpose: [] for purpose in SHARES}
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        groups = _groups(rows, track)
        lacking = {purpose: share * len(rows) for purpose, share in SHARES.items()}
        empty = dict.fromkeys(SHARES)
        for given, index in enumerate(random.permutation(len(groups))):
            # the last ones go to purposes that would have none of this class
            open_ = empty if len(groups) - given <= len(empty) else SHARES
            purpose = max(open_, key=lacking.__getitem__)
            taken[purpose].append(groups[index])
            lacking[purpose] -= len(groups[index])
            empty.pop(purpose, None)
    return {purpose: np.sort(np.concatenate([_NONE, *parts])) for purpose, parts in taken.items()}


def sample(y: Rows, rows: Rows, limit: int, seed: int) -> Rows:
    """At most `limit` of `rows` in a random order, every class of y with its share and with one row at least."""
    random = np.random.RandomState(seed)
    labels = y[rows]
    counts = {int(label): int(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    quotas = _quotas(counts, min(limit, len(rows)))
    chosen = [random.permutation(rows[labels == label])[:quota] for label, quota in quotas.items()]
    return random.permutation(np.concatenate([_NONE, *chosen]))


def resize(x: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Images (N, C, H, W) as (N, C, height, width): bilinear, pixel centres aligned, no smoothing.

    Equal to torch's interpolate(mode="bilinear", align_corners=False, antialias=False).
    """
    if x.shape[2] != height:
        low, high, weight = _neighbours(x.shape[2], height)
        weight = weight[:, None]
        x = x[:, :, low] * (1 - weight) + x[:, :, high] * weight
    if x.shape[3] != width:
        low, high, weight = _neighbours(x.shape[3], width)
        x = x[..., low] * (1 - weight) + x[..., high] * weight
    return x


_NONE: Rows = np.empty(0, np.int64)


def _groups(rows: Rows, track: NDArray[np.integer] | None) -> list[Rows]:
    if track is None:
        return list(rows[:, None])
    return [rows[track[rows] == t] for t in np.unique(track[rows])]


def _quotas(counts: Mapping[int, int], limit: int) -> dict[int, int]:
    total = sum(counts.values())
    exact = {label: limit * count / total for label, count in counts.items()} if total else {}
    least = 1 if limit >= len(counts) else 0
    quotas = {label: max(least, int(share)) for label, share in exact.items()}
    while sum(quotas.values()) > limit:
        quotas[max(quotas, key=lambda label: (quotas[label], -label))] -= 1
    by_remainder = sorted(exact, key=lambda label: (quotas[label] - exact[label], label))
    for label in by_remainder[: limit - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def _neighbours(source: int, target: int) -> tuple[Rows, Rows, NDArray[np.float32]]:
    place = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    low = np.minimum(place.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), (place - low).astype(np.float32)

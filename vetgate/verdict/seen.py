"""What the judge is given on one model: evidence as the store keeps it, read without torch, and failures.

The gate's process parses no model, so it has no use for torch; importing it would cost more than judging does. A
detector's own `vetgate.contract.Evidence` has the same attributes and can be judged as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vetgate.errors import NotFinite, StoreError
from vetgate.packed import array_of
from vetgate.role import Axis

# the detail of evidence that was found on images that show nothing: how many there were
SURROGATES = "surrogates"


@dataclass(frozen=True)
class Failure:
    """A method that crashed, timed out, was refused or was skipped. Never read as clean.

    `reason` are the words of its error for people, `code` is the error's.
    """

    method: str
    reason: str
    code: str = "failed"


class SeenTrigger(Protocol):
    """Of a reversed trigger: its mask (1, H, W) and the label it leads to."""

    @property
    def mask(self) -> Any: ...
    @property
    def target(self) -> int: ...


class SeenEvidence(Protocol):
    """Of a method's evidence what the judge reads: scores (n,) float32 along the axis, higher is more suspicious."""

    @property
    def method(self) -> str: ...
    @property
    def axis(self) -> Axis | None: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def seed(self) -> int: ...
    @property
    def statistic(self) -> float: ...
    @property
    def scores(self) -> Any: ...
    @property
    def triggers(self) -> Sequence[SeenTrigger]: ...
    @property
    def details(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, eq=False)
class StoredTrigger:
    """A trigger as evidence in the store holds it: mask (1, H, W) float32, and the label it leads to."""

    mask: NDArray[np.float32]
    target: int


@dataclass(frozen=True, eq=False)
class StoredEvidence:
    """Evidence as the store holds it: what a judge reads of it."""

    method: str
    axis: Axis | None
    params: Mapping[str, Any]
    seed: int
    statistic: float
    scores: NDArray[np.float32]
    triggers: tuple[StoredTrigger, ...]
    details: Mapping[str, Any]

    @classmethod
    def from_json(cls, blob: Mapping[str, Any]) -> StoredEvidence:
        """What `Evidence.to_json` wrote; raises NotFinite on NaN and infinity, StoreError on what is no evidence."""
        try:
            found = cls(
                method=str(blob["method"]),
                axis=Axis(blob["axis"]) if blob["axis"] else None,
                params=dict(blob["params"]),
                seed=int(blob["seed"]),
                statistic=float(blob["statistic"]),
                scores=array_of(blob["scores"], most=None),
                triggers=tuple(_trigger(trigger) for trigger in blob["triggers"]),
                details=dict(blob["details"]),
            )
            cutoff = math.inf if blob["cutoff"] is None else float(blob["cutoff"])
            if blob["neurons"] is not None:
                array_of(blob["neurons"], most=None)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"expected evidence in the store, got another object ({error!r}); vet again") from error
        if found.scores.ndim != 1 or found.scores.dtype != np.float32:
            raise StoreError(f"expected scores (n,) float32 of {found.method}, got {found.scores.shape}; vet again")
        if not math.isfinite(found.statistic) or not bool(np.isfinite(found.scores).all()) or math.isnan(cutoff):
            raise NotFinite(f"expected finite numbers in the evidence of {found.method}; the model may hold NaN")
        return found


def _trigger(blob: Mapping[str, Any]) -> StoredTrigger:
    mask, pattern = (array_of(blob[part], most=None) for part in ("mask", "pattern"))
    if mask.ndim != 3 or mask.dtype != np.float32 or mask.shape != (1, *pattern.shape[1:]):
        raise ValueError(f"expected a mask (1, H, W) and a pattern (C, H, W), got {mask.shape} and {pattern.shape}")
    return StoredTrigger(mask, int(blob["target"]))

"""One layer of a Keras file: what its configuration may say, how that is read, and its arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.keras.network import Value

MAX_SIDE = 4096


def whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number, and no flag."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Layer:
    """One layer of a file, its configuration and its arrays."""

    name: str
    kind: str
    config: Mapping[str, Any]
    arrays: Sequence[np.ndarray]

    def wrong(self, expected: str, got: object) -> NotUnderstood:
        """The error that this layer is not as it should be."""
        return NotUnderstood(f"expected {expected} in layer {self.name!r} ({self.kind}), got {str(got)[:120]}")

    def pair(self, key: str) -> tuple[int, int]:
        """A number, or one for each direction, at least 1."""
        value = self.config.get(key)
        found = [n for n in (value if isinstance(value, list) else [value, value]) if whole(n)]
        if len(found) != 2 or not 1 <= min(found) <= max(found) <= MAX_SIDE:
            raise self.wrong(f"one or two positive numbers as {key}", value)
        return found[0], found[1]

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(f"a number as {key}", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(f"true or false as {key}", value)
        return value

    def weights(self, *shapes: tuple[int, ...]) -> list[np.ndarray]:
        """The arrays of the layer in float32, which must have exactly these shapes."""
        if [array.shape for array in self.arrays] != list(shapes):
            raise self.wrong(f"arrays of shapes {list(shapes)}", [array.shape for array in self.arrays])
        return [array.astype(np.float32) for array in self.arrays]

    def numbers(self, value: Any, channels: int) -> np.ndarray:
        """One finite number, or one a channel, in float64."""
        try:
            found: np.ndarray = np.asarray(value, np.float64).reshape(-1)
        except (TypeError, ValueError):
            found = np.array([])
        if found.size not in (1, channels) or not np.isfinite(found).all():
            raise self.wrong(f"one number, or {channels}", value)
        return found

    def map_of(self, x: Value) -> tuple[int, int, int]:
        """Height, width and channels of a value, which must be a map."""
        if not x.is_map:
            raise self.wrong("a map of height, width and channels", x.shape)
        return x.shape[0], x.shape[1], x.shape[2]

    def check_last_axis(self, x: Value) -> None:
        """Refuse another axis than that of channels."""
        axis = self.config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        if not whole(axis) or axis not in (-1, len(x.shape)):
            raise self.wrong("the last axis, of channels", axis)


Build = Callable[..., Value]  # of the network, the layer and its inputs


@dataclass(frozen=True)
class Kind:
    """How layers of a class are built; `keys` are what is read of the configuration, `fixed` what it must say.

    `inputs` is how many values it takes, None where two or more; `arrays` whether it may have weights. An `idle` one
    gives what it was given, whatever its configuration says.
    """

    build: Build
    keys: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    inputs: int | None = 1
    arrays: bool = False
    idle: bool = False

"""What operators that compute make of constants, by ONNX's own rules of types.

Source    ONNX operator specifications, opset 21: one type for both sides, integer division and Cast truncate, Mod has
          the sign of the divisor unless `fmod` is 1.
Deviates  Whole numbers that leave their type or that float32 rounds are errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vetgate.formats.onnx.folding.constants import (
    EXACT_IN_FLOAT32,
    MAX_WHOLE,
    TYPES,
    Array,
    Given,
    axes_of,
    exact,
    first,
    integer,
    refuse,
)
from vetgate.formats.onnx.nodes import Node

# these are read as float32
WIDER = {10: 1, 11: 1, 16: 1}


def pairs(
    whole: Callable[[int, int], int] | None, real: Callable[[Array, Array], Array] | None
) -> Callable[[Node, Given, int], Array]:
    """What folds numbers from the left: exactly for whole ones, in float32 for others."""

    def compute(node: Node, given: Given, opset: int) -> Array:
        result = first(given)
        for other in given[1:]:
            if other is None:
                raise ValueError("an input is missing")
            if result.dtype == np.float32:
                if real is None:
                    raise ValueError("floating point numbers")
                result = np.asarray(real(result, other), np.float32)
            elif result.dtype == np.bool_ or whole is None:
                raise ValueError(f"{result.dtype}")
            else:
                one, two = np.broadcast_arrays(result, other)
                if one.size > MAX_WHOLE:
                    raise ValueError(f"{one.size} whole numbers")
                made = [whole(int(a), int(b)) for a, b in zip(one.reshape(-1), two.reshape(-1), strict=True)]
                result = exact(node, np.array(made, object).reshape(one.shape), result.dtype)
        return result

    return compute


def truncated(a: int, b: int) -> int:
    """Division of whole numbers as in C."""
    if b == 0:
        raise ValueError("a division by zero")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def divided(node: Node, given: Given, opset: int) -> Array:
    """Div, but for a whole 1 that runtimes divide last."""
    value, others = first(given), [other for other in given[1:] if other is not None]
    alone = value.size == 1 and value.dtype != np.float32 and int(value.reshape(-1)[0]) == 1
    if alone and any(bool((np.abs(other) > 1).any()) for other in others):
        # onnxruntime merges it with a product behind it, and divides last
        raise refuse(node, "no whole 1 that is divided by more", "one, which runtimes compute in different ways")
    return pairs(truncated, np.divide)(node, given, opset)


def _remainder(a: int, b: int) -> int:
    if b == 0:
        raise ValueError("a division by zero")
    return a % b


def mod(node: Node, given: Given, opset: int) -> Array:
    """Mod, with the sign of the divisor, or as in C where `fmod` is 1."""
    like_c = integer(node, "fmod", 0)
    if like_c not in (0, 1):
        raise ValueError(f"fmod {like_c}")
    if like_c:
        return pairs(lambda a, b: a - b * truncated(a, b), np.fmod)(node, given, opset)
    return pairs(_remainder, None)(node, given, opset)


def unary(whole: Callable[[int], int] | None, real: Callable[[Array], Array]) -> Callable[[Node, Given, int], Array]:
    """What computes each number alone."""

    def compute(node: Node, given: Given, opset: int) -> Array:
        value = first(given)
        if value.dtype == np.float32:
            return np.asarray(real(value), np.float32)
        if whole is None or value.dtype == np.bool_ or value.size > MAX_WHOLE:
            raise ValueError(str(value.dtype))
        made = np.array([whole(int(v)) for v in value.reshape(-1)], object).reshape(value.shape)
        return exact(node, made, value.dtype)

    return compute


def compared(function: Callable[[Array, Array], Array]) -> Callable[[Node, Given, int], Array]:
    """What compares two constants."""
    return lambda node, given, opset: np.asarray(function(*given))  # type: ignore[arg-type]


def logical(function: Callable[..., Array]) -> Callable[[Node, Given, int], Array]:
    """What combines truth values."""

    def compute(node: Node, given: Given, opset: int) -> Array:
        if any(value is None or value.dtype != np.bool_ for value in given):
            raise ValueError("no truth values")
        return np.asarray(function(*given))

    return compute


def cast(node: Node, given: Given, opset: int) -> Array:
    """A constant in another type, which must hold it exactly."""
    value = first(given)
    to = integer(node, "to", 0)
    kind = TYPES.get(WIDER.get(to, to))
    if kind is None:
        raise ValueError(f"ONNX data type {to}")
    if value.dtype == kind:
        return value
    if kind == np.bool_:
        return np.asarray(value != 0)
    if kind == np.float32:
        if value.dtype != np.bool_ and bool((np.abs(value.astype(np.float64)) > EXACT_IN_FLOAT32).any()):
            raise ValueError("a whole number that float32 rounds")
        return value.astype(np.float32)
    return exact(node, np.array([int(v) for v in value.reshape(-1)], object).reshape(value.shape), np.dtype(kind))


def reduced(
    whole: Callable[[Sequence[int]], int] | None, real: Callable[..., Array]
) -> Callable[[Node, Given, int], Array]:
    """What reduces axes."""

    def compute(node: Node, given: Given, opset: int) -> Array:
        value, axes = first(given), axes_of(node, given, 1)
        keep = bool(integer(node, "keepdims", 1))
        if not axes and integer(node, "noop_with_empty_axes", 0):
            return value
        over = tuple(axes) if axes else tuple(range(value.ndim))
        if value.dtype == np.float32:
            return np.asarray(real(value, axis=over, keepdims=keep), np.float32)
        if whole is None or value.dtype == np.bool_ or value.size > MAX_WHOLE:
            raise ValueError(str(value.dtype))
        over = tuple(a % value.ndim for a in over)
        moved = np.moveaxis(value, over, range(-len(over), 0)) if over else value
        rest = moved.shape[: value.ndim - len(over)]
        rows = moved.reshape(-1, math.prod(moved.shape[value.ndim - len(over) :]))
        made = np.array([whole([int(v) for v in row]) for row in rows], object).reshape(rest)
        return exact(node, np.expand_dims(made, over) if keep and over else made, value.dtype)

    return compute


def length(values: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    """The Euclidean length over these axes."""
    return np.asarray(np.sqrt(np.sum(values * values, axis=axis, keepdims=keepdims)))


def matmul(node: Node, given: Given, opset: int) -> Array:
    """A product of float32 matrices."""
    one, two = first(given), given[1]
    if two is None or one.dtype != np.float32 or two.dtype != np.float32:
        raise ValueError("no float32")
    return np.asarray(np.matmul(one, two))


def clip(node: Node, given: Given, opset: int) -> Array:
    """Numbers within bounds, attributes in older opsets and inputs in newer ones."""
    value, made = first(given), first(given)
    for index, name, choose in ((1, "min", np.maximum), (2, "max", np.minimum)):
        held = given[index] if index < len(given) else None
        named = node.attributes.get(name)
        bound = np.array(named, np.float32) if isinstance(named, float) else held
        if bound is not None and (bound.size != 1 or bound.dtype != value.dtype):
            raise ValueError(f"a bound of type {bound.dtype}")
        made = made if bound is None else choose(made, bound.reshape(()))
    return made


def batch_norm(node: Node, given: Given, opset: int) -> Array:
    """Normalised channels; of weights that a network normalises whenever it runs, by their own statistics."""
    value, (scale, bias, mean, variance) = first(given), (_float(held) for held in given[1:])
    if value.dtype != np.float32 or value.ndim < 2 or any(v.shape != value.shape[1:2] for v in (scale, bias)):
        raise ValueError("no channels")
    if integer(node, "training_mode", 0):
        over = tuple(axis for axis in range(value.ndim) if axis != 1)
        mean, variance = value.mean(over), value.var(over)
    epsilon = node.attributes.get("epsilon", 1e-5)
    shape = [1, -1, *[1] * (value.ndim - 2)]
    factor = scale / np.sqrt(np.add(variance, epsilon, dtype=np.float32))
    made = (value - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    return np.asarray(made, np.float32)


def _float(value: Array | None) -> Array:
    if value is None or value.dtype != np.float32:
        raise ValueError("no float32")
    return value


def cumulated(node: Node, given: Given, opset: int) -> Array:
    """Sums of all before, along an axis."""
    value, axis = first(given), given[1]
    if axis is None or axis.size != 1 or value.dtype == np.bool_:
        raise ValueError("no axis")
    along = int(axis.reshape(-1)[0])
    value = np.flip(value, along) if integer(node, "reverse", 0) else value
    total = np.cumsum(value, along, object if value.dtype != np.float32 else np.float32)
    total = total - value if integer(node, "exclusive", 0) else total
    total = np.flip(total, along) if integer(node, "reverse", 0) else total
    return total if value.dtype == np.float32 else exact(node, total, value.dtype)

"""What operators that arrange, choose and count make of constants, by ONNX's own rules of shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vetgate.formats.onnx.folding.constants import (
    EXACT_IN_FLOAT32,
    MAX_FOLDED,
    MAX_WHOLE,
    Array,
    Given,
    axes_of,
    exact,
    first,
    integer,
    refuse,
    whole_list,
)
from vetgate.formats.onnx.nodes import Node


def gather(node: Node, given: Given, opset: int) -> Array:
    """Values at positions along an axis."""
    value, index = first(given), given[1]
    axis = integer(node, "axis", 0)
    if index is None or index.dtype not in (np.int64, np.int32) or not -value.ndim <= axis < value.ndim:
        raise ValueError("no positions")
    return np.take(value, index, axis)


def reshape(node: Node, given: Given, opset: int) -> Array:
    """The values in another shape."""
    value, target = first(given), given[1]
    if target is None or target.dtype != np.int64 or target.ndim != 1:
        raise ValueError("a shape that is no list of int64")
    sizes = [int(v) for v in target]
    if not integer(node, "allowzero", 0):
        sizes = [value.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    elif 0 in sizes and -1 in sizes:
        raise ValueError("0 beside -1")
    if any(size < -1 for size in sizes):
        raise ValueError(f"the shape {sizes}")
    return value.reshape(sizes)


def transpose(node: Node, given: Given, opset: int) -> Array:
    """Another order of axes."""
    perm = node.attributes.get("perm")
    return np.transpose(first(given), tuple(int(v) for v in perm) if isinstance(perm, tuple) else None)


def squeeze(node: Node, given: Given, opset: int) -> Array:
    """Axes of size one left out."""
    axes = axes_of(node, given, 1)
    return np.squeeze(first(given), None if axes is None else tuple(axes))


def unsqueeze(node: Node, given: Given, opset: int) -> Array:
    """Axes of size one put in."""
    axes = axes_of(node, given, 1)
    if not axes:
        raise ValueError("no axes")
    return np.expand_dims(first(given), tuple(axes))


def flatten(node: Node, given: Given, opset: int) -> Array:
    """All axes before one together, and all from it on."""
    value, axis = first(given), integer(node, "axis", 1)
    if not -value.ndim <= axis <= value.ndim:
        raise ValueError(f"axis {axis}")
    axis = axis + value.ndim if axis < 0 else axis
    return value.reshape(math.prod(value.shape[:axis]), -1 if value.size else 0)


def concat(node: Node, given: Given, opset: int) -> Array:
    """Values side by side."""
    if "axis" not in node.attributes:
        raise ValueError("no axis")
    return np.concatenate([value for value in given if value is not None], integer(node, "axis", 0))


def cuts(node: Node, given: Given, shape: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Of a Slice of a tensor of this shape: (axis, start, end, step) for each axis it names, within the tensor."""
    bounds = [whole_list(node, given, place, name) for place, name in ((1, "starts"), (2, "ends"))]
    starts, ends = bounds
    if starts is None or ends is None:
        raise refuse(node, "starts and ends", "none")
    axes = whole_list(node, given, 3, "axes") or list(range(len(starts)))
    steps = whole_list(node, given, 4, "steps") or [1] * len(starts)
    rank = len(shape)
    sound = len(starts) == len(ends) == len(axes) == len(steps) and all(-rank <= a < rank for a in axes)
    axes = [a % rank for a in axes] if sound else axes
    if not sound or len(set(axes)) != len(axes) or any(step == 0 for step in steps):
        raise refuse(node, "starts, ends, axes and steps of one length", f"{starts} {ends} {axes} {steps}")
    return [
        (axis, *slice(start, end, step).indices(shape[axis]))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    ]


def taken(node: Node, given: Given, opset: int) -> Array:
    """A cut."""
    value = first(given)
    for axis, start, end, step in cuts(node, given, value.shape):
        value = np.take(value, range(start, end, step), axis)
    return value


def split_sizes(node: Node, given: Given, size: int) -> list[int]:
    """The sizes that a Split cuts an axis of `size` into."""
    named = whole_list(node, given, 1, "split")
    count = integer(node, "num_outputs", len(node.outputs))
    if named is None:
        each = math.ceil(size / count) if count else 0
        named = [max(0, min(each, size - i * each)) for i in range(count)]
        if size % count and "num_outputs" not in node.attributes:
            raise refuse(node, "equal parts", f"{count} parts of {size}")
    if sum(named) != size or len(named) != len(node.outputs) or any(part < 1 for part in named):
        raise refuse(node, f"parts of an axis of {size}, one for each output", f"{named}")
    return named


def split(node: Node, given: Given, opset: int) -> list[Array]:
    """The parts of an axis."""
    value, axis = first(given), integer(node, "axis", 0)
    ends = np.cumsum(split_sizes(node, given, value.shape[axis]))[:-1]
    return np.split(value, ends, axis)


def expand(node: Node, given: Given, opset: int) -> Array:
    """A value repeated to a shape."""
    value, target = first(given), given[1]
    if target is None or target.dtype != np.int64 or target.ndim != 1:
        raise ValueError("a shape that is no list of int64")
    shape = np.broadcast_shapes(value.shape, _moderate(target))
    return np.broadcast_to(value, _moderate(np.array(shape, np.int64))).copy()


def _moderate(shape: Array) -> tuple[int, ...]:
    sizes = tuple(int(v) for v in shape)
    if any(size < 0 for size in sizes) or math.prod(sizes) > MAX_FOLDED:
        raise ValueError(f"the shape {sizes}")
    return sizes


def constant_of_shape(node: Node, given: Given, opset: int) -> Array:
    """One number in a shape."""
    value = node.attributes.get("value", np.zeros(1, np.float32))
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise ValueError("a value that is not one number")
    return np.full(_moderate(first(given)), value.reshape(-1)[0], value.dtype)


def counted(node: Node, given: Given, opset: int) -> Array:
    """Numbers from a start to a limit."""
    start, limit, delta = (value.reshape(-1)[0] for value in given if value is not None and value.size == 1)
    real = start.dtype == np.float32
    if real and any(not abs(v) <= EXACT_IN_FLOAT32 or v != int(v) for v in (start, limit, delta)):
        raise ValueError("fractions, whose count runtimes round")
    if delta == 0 or abs((int(limit) - int(start)) // int(delta)) > MAX_WHOLE:
        raise ValueError(f"{start} to {limit} by {delta}")
    made = np.array(range(int(start), int(limit), int(delta)), object)
    return made.astype(np.float32) if real else exact(node, made, start.dtype)


def where(node: Node, given: Given, opset: int) -> Array:
    """One value or another by truth values."""
    condition, one, two = given
    if condition is None or one is None or two is None or condition.dtype != np.bool_ or one.dtype != two.dtype:
        raise ValueError("no truth values, or two types")
    return np.asarray(np.where(condition, one, two))


def tile(node: Node, given: Given, opset: int) -> Array:
    """A value repeated along its axes."""
    value, repeats = first(given), given[1]
    if repeats is None or repeats.size != value.ndim or value.size * math.prod(map(int, repeats)) > MAX_FOLDED:
        raise ValueError("repeats that do not fit")
    return np.tile(value, _moderate(repeats))


def shape_of(node: Node, shape: Sequence[int]) -> Array:
    """What a Shape node gives for a tensor of this shape."""
    end = node.attributes.get("end")
    part = slice(integer(node, "start", 0), end if isinstance(end, int) else None)
    return np.array(tuple(shape)[part], np.int64)

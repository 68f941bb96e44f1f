"""Operators that move, cut, join and rename axes, and those that compute a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.operands import Built, Operands, Pointwise, tensor

MAX_BORDER = 4096


class Concat(nn.Module):
    """Tensors side by side along an axis; those that are constant are held here, under their place."""

    def __init__(self, axis: int, count: int, constants: dict[int, Tensor]) -> None:
        super().__init__()
        self.axis, self.count = axis, count
        for place, constant in constants.items():
            self.register_buffer(f"constant{place}", constant)

    def forward(self, *given: Tensor) -> Tensor:
        """The given tensors in order, between the constant ones."""
        rest = iter(given)
        held = dict(self.named_buffers(recurse=False))
        parts = [held[f"constant{i}"] if f"constant{i}" in held else next(rest) for i in range(self.count)]
        return torch.cat(parts, self.axis)


class Reshape(nn.Module):
    """A new shape, fixed or computed; a batch size that was fixed on export follows the batch given."""

    def __init__(self, sizes: Sequence[int] | None, *, keep_zero: bool, batch: int | None) -> None:
        super().__init__()
        self.sizes, self.keep_zero, self.batch = sizes, keep_zero, batch

    def forward(self, x: Tensor, shape: Tensor | None = None) -> Tensor:
        """x in the shape held here, or in the one given."""
        sizes = (
            list(self.sizes)
            if self.sizes is not None
            else [int(v) for v in shape.tolist()]
            if shape is not None
            else []
        )
        if not self.keep_zero:
            sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        if self.sizes is not None and sizes and sizes[0] == self.batch:
            sizes[0] = x.shape[0]
        return x.reshape(sizes)


class Flatten(nn.Module):
    """(B, ...) to two axes, split before `axis`."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """The product of the sizes before the axis, and of the rest."""
        axis = self.axis + x.ndim if self.axis < 0 else self.axis
        if not 0 <= axis <= x.ndim:
            raise ValueError(f"expected an axis of {x.ndim}, got {self.axis}")
        return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


class Pad(nn.Module):
    """A border of a constant, of the nearest value or of the mirrored image; (axis, before, after) for each axis."""

    def __init__(self, widths: Sequence[tuple[int, int, int]], mode: str, value: float) -> None:
        super().__init__()
        self.widths, self.mode, self.value = widths, mode, value

    def forward(self, x: Tensor) -> Tensor:
        """x with its border."""
        amounts = [(0, 0)] * x.ndim
        for axis, before, after in self.widths:
            amounts[axis] = (before, after)
        while amounts and amounts[0] == (0, 0):
            amounts.pop(0)
        flat = [n for pair in reversed(amounts) for n in pair]
        if not flat:
            return x
        return F.pad(x, flat, self.mode, self.value) if self.mode == "constant" else F.pad(x, flat, self.mode)


class Slice(nn.Module):
    """A range along each of some axes, backwards where its step is negative."""

    def __init__(self, ranges: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.ranges = ranges

    def forward(self, x: Tensor) -> Tensor:
        """x cut to the ranges (axis, start, end, step)."""
        for axis, start, end, step in self.ranges:
            size = x.shape[axis]
            first, last = (v + size if v < 0 else v for v in (start, end))
            if step > 0:
                first, last = min(max(first, 0), size), min(max(last, 0), size)
                x = x.narrow(axis, first, max(last - first, 0))
                if step > 1:
                    x = x[(slice(None),) * (axis % x.ndim) + (slice(None, None, step),)]
            else:
                first, last = min(max(first, 0), size - 1), min(max(last, -1), size - 1)
                x = x.index_select(axis, torch.arange(first, last, step, device=x.device))
        return x


class Gather(nn.Module):
    """Rows of x along an axis at fixed positions; one number as position drops the axis."""

    def __init__(self, axis: int, index: Tensor) -> None:
        super().__init__()
        self.axis, self.index = axis, index

    def forward(self, x: Tensor) -> Tensor:
        """The chosen rows."""
        size = x.shape[self.axis]
        if bool(((self.index < -size) | (self.index >= size)).any()):
            raise IndexError(f"expected positions within {size}, got {self.index.flatten()[:8].tolist()}")
        index = self.index % size
        if index.ndim == 0:
            return x.select(self.axis, int(index))
        axis = self.axis % x.ndim
        rows = x.index_select(axis, index.flatten().to(x.device))
        return rows.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


class Unsqueeze(nn.Module):
    """New axes of size one; they count in the result."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """x with the new axes."""
        rank = x.ndim + len(self.axes)
        if any(not -rank <= a < rank for a in self.axes):
            raise ValueError(f"expected axes of {rank}, got {list(self.axes)}")
        for axis in sorted(a % rank for a in self.axes):
            x = x.unsqueeze(axis)
        return x


class Squeeze(nn.Module):
    """Axes of size one removed."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """x without the axes."""
        if any(x.shape[a] != 1 for a in self.axes):
            raise ValueError(f"expected size 1 at axes {list(self.axes)}, got shape {tuple(x.shape)}")
        return x.squeeze(tuple(self.axes))


class Cast(nn.Module):
    """Another number type; float to whole numbers is refused, since it would cut the gradient."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """x in the type."""
        if x.is_floating_point() and not self.dtype.is_floating_point:
            raise NotUnderstood("expected no rounding of activations, got a Cast to whole numbers; export without it")
        return x.to(self.dtype)


def reshape(o: Operands) -> Built:
    keep_zero = bool(o.integer("allowzero", 0))
    if 1 in o.data:
        return Built(Reshape(None, keep_zero=keep_zero, batch=None), (0, 1))
    return Built(Reshape(tuple(o.whole(1)), keep_zero=keep_zero, batch=o.batch), (0,))


def transpose(o: Operands) -> Built:
    order = o.integers("perm")
    if order is None:
        return Built(Pointwise(lambda x: x.permute(*reversed(range(x.ndim)))), (0,))
    turned = tuple(order)
    return Built(Pointwise(lambda x: x.permute(turned)), (0,))


def squeeze(o: Operands) -> Built:
    axes = o.axes()
    if not axes:
        raise o.refuse("axes to squeeze", "none, which depends on the batch size")
    return Built(Squeeze(tuple(axes)), (0,))


def unsqueeze(o: Operands) -> Built:
    axes = o.axes()
    if not axes or len(axes) > 8:
        raise o.refuse("one to eight axes", str(axes))
    return Built(Unsqueeze(tuple(axes)), (0,))


def concat(o: Operands) -> Built:
    if "axis" not in o.node.attributes:
        raise o.refuse("an axis", "none")
    held = {i: tensor(o.constant(i)) for i in range(len(o.node.inputs)) if i not in o.data}
    slots = tuple(o.slot(f"constant{i}", i) for i in held)
    return Built(Concat(o.integer("axis", 1), len(o.node.inputs), held), tuple(sorted(o.data)), slots)


def pad(o: Operands) -> Built:
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    pads, mode = o.whole(1), o.text("mode", "constant")
    axes = o.whole(3) if o.given(3) else list(range(len(pads) // 2))
    if mode not in modes or len(pads) != 2 * len(axes) or any(abs(p) > MAX_BORDER for p in pads):
        raise o.refuse("constant, reflect or edge padding with two widths an axis", f"{mode} {pads}")
    value = o.number(2, 0.0) if mode == "constant" else 0.0
    widths = [(axis, pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)]
    return Built(Pad(widths, modes[mode], value), (0,))


def shape(o: Operands) -> Built:
    start, end = o.integer("start", 0), o.node.attributes.get("end")
    part = slice(start, end if isinstance(end, int) else None)
    return Built(Pointwise(lambda x: torch.tensor(x.shape[part], dtype=torch.int64)), (0,))


def gather(o: Operands) -> Built:
    index = o.constant(1)
    if index.dtype not in (np.int64, np.int32) or not index.size:
        raise o.refuse("positions", f"{index.dtype} of shape {index.shape}")
    return Built(Gather(o.integer("axis", 0), tensor(index).long()), (0,))


def cut(o: Operands) -> Built:
    starts, ends = o.whole(1), o.whole(2)
    axes = o.whole(3) if o.given(3) else list(range(len(starts)))
    steps = o.whole(4) if o.given(4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(set(axes)) == len(steps) or 0 in steps:
        raise o.refuse("starts, ends, axes and steps of one length", f"{starts} {ends} {axes} {steps}")
    return Built(Slice(list(zip(axes, starts, ends, steps, strict=True))), (0,))


def cast(o: Operands) -> Built:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}
    to = o.integer("to", 0)
    if to not in kinds:
        raise o.refuse("a cast to float32, int32, int64 or bool", f"ONNX data type {to}")
    return Built(Cast(kinds[to]), (0,))

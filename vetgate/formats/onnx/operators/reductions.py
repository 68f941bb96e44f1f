"""Reductions over axes of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vetgate.formats.onnx.operands import Built, Operands, Pointwise


def reduction(o: Operands) -> Built:
    axes, keep, function = o.axes(), bool(o.integer("keepdims", 1)), FUNCTIONS[o.node.op]
    if not axes:
        if axes is not None and o.integer("noop_with_empty_axes", 0):
            return Built(nn.Identity(), (0,))
        raise o.refuse("axes to reduce", "none, which mixes the images of a batch")
    where = tuple(axes)
    return Built(Pointwise(lambda x: function(x, where, keep)), (0,))


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keep)
    return x


FUNCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}

"""Operators that repeat values or move them between axes: no number changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vetgate.formats.onnx.operands import Built, Operands, Pointwise, tensor

MAX_BLOCK = 64


class Where(nn.Module):
    """One of two tensors at each place of a mask that is fixed; what is constant is held here."""

    def __init__(self, mask: Tensor, constants: dict[int, Tensor]) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        for place, constant in constants.items():
            self.register_buffer(f"constant{place}", constant)

    def forward(self, *given: Tensor) -> Tensor:
        """The first tensor where the mask is true, else the second."""
        rest, held = iter(given), dict(self.named_buffers(recurse=False))
        first, second = (held[f"constant{i}"] if f"constant{i}" in held else next(rest) for i in (1, 2))
        return torch.where(held["mask"], first, second)


class GatherNd(nn.Module):
    """Values at fixed positions, given by their indices along the first axes."""

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """The values at the positions, in their shape."""
        sizes = torch.tensor(x.shape[: self.index.shape[-1]])
        if bool(((self.index < -sizes) | (self.index >= sizes)).any()):
            raise IndexError(f"expected positions within {sizes.tolist()}, got others")
        return x[tuple((self.index % sizes).to(x.device).unbind(-1))]


def expand(o: Operands) -> Built:
    sizes = tuple(o.whole(1))
    if any(size < 1 for size in sizes):
        raise o.refuse("positive sizes", str(sizes))
    return Built(Pointwise(lambda x: x.expand(np.broadcast_shapes(tuple(x.shape), sizes))), (0,))


def tile(o: Operands) -> Built:
    repeats = tuple(o.whole(1))
    if any(count < 1 for count in repeats):
        raise o.refuse("positive repeats", str(repeats))
    return Built(Pointwise(lambda x: x.repeat(*repeats)), (0,))


def where(o: Operands) -> Built:
    if 0 in o.data:
        raise o.refuse("a constant mask", "one that is computed, which chooses what the network computes")
    mask = o.constant(0)
    if mask.dtype != np.bool_:
        raise o.refuse("a mask of truth values", str(mask.dtype))
    constants = {i: tensor(o.constant(i)) for i in (1, 2) if i not in o.data}
    slots = tuple(o.slot(f"constant{i}", i) for i in constants)
    return Built(Where(tensor(mask), constants), tuple(sorted(o.data)), slots)


def gather_nd(o: Operands) -> Built:
    index = o.constant(1)
    if o.integer("batch_dims", 0) or index.dtype != np.int64 or index.ndim < 1:
        raise o.refuse("positions without batch_dims", f"{index.dtype} of shape {index.shape}")
    return Built(GatherNd(tensor(index)), (0,))


def triangle(o: Operands) -> Built:
    above, offset = o.integer("upper", 1), int(o.number(1, 0))
    return Built(Pointwise(lambda x: x.triu(offset) if above else x.tril(offset)), (0,))


def depth_to_space(o: Operands) -> Built:
    block, mode = _block(o), o.text("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise o.refuse("mode DCR or CRD", mode)
    order, split = ((0, 3, 4, 1, 5, 2), 1) if mode == "DCR" else ((0, 1, 4, 2, 5, 3), 2)

    def forward(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        kept = channels // block**2
        sizes = (block, block, kept) if split == 1 else (kept, block, block)
        return x.reshape(batch, *sizes, height, width).permute(order).reshape(batch, kept, height * block, -1)

    return Built(Pointwise(forward), (0,))


def space_to_depth(o: Operands) -> Built:
    block = _block(o)

    def forward(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = x.reshape(batch, channels, height // block, block, width // block, block)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // block, width // block)

    return Built(Pointwise(forward), (0,))


def _block(o: Operands) -> int:
    block = o.integer("blocksize", 0)
    if not 1 <= block <= MAX_BLOCK:
        raise o.refuse(f"a blocksize of 1 to {MAX_BLOCK}", str(block))
    return block


def einsum(o: Operands) -> Built:
    equation = o.text("equation", "").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    # an axis twice in one term is a diagonal, and the dots stand for axes that nobody counted
    sound = equation.isascii() and all(term.isalpha() and len(set(term)) == len(term) for term in terms)
    if equation.count("->") != 1 or not sound or len(terms) != len(o.node.inputs):
        raise o.refuse("an equation that names every axis, with an arrow", equation[:80])
    constants = {i: tensor(o.weight(i)) for i in range(len(terms)) if i not in o.data}
    slots = tuple(o.slot(f"constant{i}", i) for i in constants)
    return Built(Einsum(equation, len(terms), constants, o.trained), tuple(sorted(o.data)), slots)


class Einsum(nn.Module):
    """A sum of products over named axes; what is constant is held here."""

    def __init__(self, equation: str, count: int, constants: dict[int, Tensor], trained: bool) -> None:
        super().__init__()
        self.equation, self.count = equation, count
        hold: Callable[[str, Tensor], None] = self.register_buffer
        for place, constant in constants.items():
            if trained:
                self.register_parameter(f"constant{place}", nn.Parameter(constant))
            else:
                hold(f"constant{place}", constant)

    def forward(self, *given: Tensor) -> Tensor:
        """The sum over the axes that the result does not name."""
        rest = iter(given)
        parts = [
            getattr(self, f"constant{i}") if hasattr(self, f"constant{i}") else next(rest) for i in range(self.count)
        ]
        out: Tensor = torch.einsum(self.equation, parts)
        return out

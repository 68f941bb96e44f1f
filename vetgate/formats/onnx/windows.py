"""Convolution and pooling: operators that slide a window over height and width."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.formats.onnx.operands import Built, Operands

MAX_WINDOW = 4096
# of the weights of a convolution
LARGE = 1 << 22


@dataclass(frozen=True)
class Padding:
    """How much a window operator pads: fixed (top, left, bottom, right), or as much as keeps ceil(size / stride)."""

    fixed: tuple[int, int, int, int] | None
    extra_first: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def symmetric(self) -> tuple[int, int] | None:
        """(rows, columns) where both sides get the same, else None."""
        if self.fixed is None or self.fixed[:2] != self.fixed[2:]:
            return None
        return self.fixed[:2]

    def pad(self, x: Tensor, value: float) -> Tensor:
        """x (B, C, H, W) with its border."""
        top, left, bottom, right = self.fixed or self._same(x.shape[2], x.shape[3])
        return F.pad(x, (left, right, top, bottom), value=value) if any((top, left, bottom, right)) else x

    def _same(self, height: int, width: int) -> tuple[int, int, int, int]:
        before, after = [], []
        for size, k, s, d in zip((height, width), self.kernel, self.stride, self.dilation, strict=True):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            before.append(math.ceil(total / 2) if self.extra_first else total // 2)
            after.append(total - before[-1])
        return before[0], before[1], after[0], after[1]


class PaddedConv2d(nn.Conv2d):
    """A convolution whose sides are padded unequally, or by the size of the image."""

    border: Padding

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out, H', W')."""
        return super().forward(self.border.pad(input, 0.0))


class PaddedMaxPool2d(nn.Module):
    """Maximum over windows, of which those at the border may be cut."""

    def __init__(self, border: Padding) -> None:
        super().__init__()
        self.border = border

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        b = self.border
        return F.max_pool2d(b.pad(x, -math.inf), b.kernel, b.stride, dilation=b.dilation)


class PaddedAvgPool2d(nn.Module):
    """Mean over windows; the padding counts as zeros or not at all."""

    def __init__(self, border: Padding, count_padding: bool) -> None:
        super().__init__()
        self.border, self.count_padding = border, count_padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        b = self.border
        mean = F.avg_pool2d(b.pad(x, 0.0), b.kernel, b.stride)
        if self.count_padding:
            return mean
        return mean / F.avg_pool2d(b.pad(torch.ones_like(x[:1, :1]), 0.0), b.kernel, b.stride)


class LargeConv2d(nn.Conv2d):
    """A convolution with many weights, which is computed as a linear map where its window is the whole image.

    For each call torch lays out the weights of a convolution anew, which takes their memory once more, and most of the
    time. Some networks end in layers of this kind, which hold nearly all that they have learned.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        if x.shape[2:] != self.weight.shape[2:]:
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


def conv(o: Operands) -> Built:
    weight = o.weight(1, rank=4)
    out, inner, *kernel = weight.shape
    group = o.integer("group", 1)
    if o.integers("kernel_shape") not in (None, kernel) or not 1 <= group <= out or out % group or not inner:
        raise o.refuse("a kernel and groups that fit the weights", f"weights {weight.shape}, group {group}")
    border = _window(o, kernel)
    plain = border.symmetric
    kind = nn.Conv2d if plain is not None else PaddedConv2d
    if plain == (0, 0) and group == 1 and border.dilation == (1, 1) and weight.size >= LARGE:
        kind = LargeConv2d
    # on the meta device nothing is allocated and no random number drawn for weights that are replaced at once
    module = kind(
        inner * group,
        out,
        border.kernel,
        border.stride,
        plain or 0,
        border.dilation,
        group,
        bias=o.given(2),
        device="meta",
    )
    if isinstance(module, PaddedConv2d):
        module.border = border
    module.weight = o.parameter(1)
    slots = [o.slot("weight", 1)]
    if o.given(2):
        if o.weight(2, rank=1).shape != (out,):
            raise o.refuse(f"a bias of {out}", f"shape {o.weight(2).shape}")
        module.bias = o.parameter(2)
        slots.append(o.slot("bias", 2))
    return Built(module, (0,), tuple(slots))


def transposed_conv(o: Operands) -> Built:
    weight = o.weight(1, rank=4)
    inner, out, *kernel = weight.shape
    group = o.integer("group", 1)
    if o.integers("kernel_shape") not in (None, kernel) or not 1 <= group <= inner or inner % group or not out:
        raise o.refuse("a kernel and groups that fit the weights", f"weights {weight.shape}, group {group}")
    border, extra = _window(o, kernel), o.integers("output_padding") or [0, 0]
    plain = border.symmetric
    if plain is None or o.integers("output_shape") is not None or o.text("auto_pad", "NOTSET") != "NOTSET":
        raise o.refuse("the same pads on both sides and no output_shape", "others")
    limits = [max(s, d) for s, d in zip(border.stride, border.dilation, strict=True)]
    if len(extra) != 2 or any(not 0 <= e < limit for e, limit in zip(extra, limits, strict=True)):
        raise o.refuse(f"an output_padding below {limits}", str(extra))
    module = nn.ConvTranspose2d(
        inner,
        out * group,
        border.kernel,
        border.stride,
        plain,
        (extra[0], extra[1]),
        group,
        bias=o.given(2),
        dilation=border.dilation,
        device="meta",
    )
    module.weight = o.parameter(1)
    slots = [o.slot("weight", 1)]
    if o.given(2):
        if o.weight(2, rank=1).shape != (out * group,):
            raise o.refuse(f"a bias of {out * group}", f"shape {o.weight(2).shape}")
        module.bias = o.parameter(2)
        slots.append(o.slot("bias", 2))
    return Built(module, (0,), tuple(slots))


def max_pool(o: Operands) -> Built:
    border = _window(o, o.integers("kernel_shape") or [])
    plain, ceil = border.symmetric, bool(o.integer("ceil_mode", 0))
    if o.integer("storage_order", 0):
        raise o.refuse("storage_order 0", "1")
    if plain is not None and all(2 * p <= k for p, k in zip(plain, border.kernel, strict=True)):
        return Built(nn.MaxPool2d(border.kernel, border.stride, plain, border.dilation, ceil_mode=ceil), (0,))
    if ceil:
        raise o.refuse("ceil_mode with equal padding on both sides", "unequal padding")
    return Built(PaddedMaxPool2d(border), (0,))


def average_pool(o: Operands) -> Built:
    border = _window(o, o.integers("kernel_shape") or [])
    plain, ceil, count = border.symmetric, bool(o.integer("ceil_mode", 0)), bool(o.integer("count_include_pad", 0))
    if border.dilation != (1, 1):
        raise o.refuse("no dilation", f"{border.dilation}")
    if ceil and plain != (0, 0):
        raise o.refuse("ceil_mode without padding", "both")
    if plain is not None and all(2 * p <= k for p, k in zip(plain, border.kernel, strict=True)):
        return Built(nn.AvgPool2d(border.kernel, border.stride, plain, ceil, count), (0,))
    return Built(PaddedAvgPool2d(border, count), (0,))


def lrn(o: Operands) -> Built:
    size = o.integer("size", 0)
    if not 1 <= size <= MAX_WINDOW or size % 2 == 0:
        raise o.refuse("an odd size", str(size))
    return Built(nn.LocalResponseNorm(size, o.real("alpha", 1e-4), o.real("beta", 0.75), o.real("bias", 1.0)), (0,))


def _window(o: Operands, kernel: list[int]) -> Padding:
    strides, dilations = o.integers("strides") or [1, 1], o.integers("dilations") or [1, 1]
    pads, mode = o.integers("pads") or [0, 0, 0, 0], o.text("auto_pad", "NOTSET")
    sound = len(kernel) == len(strides) == len(dilations) == 2 and len(pads) == 4
    if not sound or not all(1 <= v <= MAX_WINDOW for v in (*kernel, *strides, *dilations)):
        raise o.refuse("a window over height and width", f"kernel {kernel}, strides {strides}, dilations {dilations}")
    if not all(0 <= p <= MAX_WINDOW for p in pads) or mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise o.refuse("padding of four sides", f"pads {pads}, auto_pad {mode}")
    if mode != "NOTSET" and any(pads):
        raise o.refuse("pads or auto_pad", "both")
    fixed = None if mode.startswith("SAME") else (pads[0], pads[1], pads[2], pads[3])
    pairs = [(values[0], values[1]) for values in (kernel, strides, dilations)]
    return Padding(fixed, mode == "SAME_LOWER", *pairs)

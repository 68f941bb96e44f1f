"""Layers that look at windows of a map: convolutions, pooling, padding. SAME means what it does in TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vetgate.formats.keras.activations import finish
from vetgate.formats.keras.layer import MAX_SIDE, Build, Layer, whole
from vetgate.formats.keras.network import Network, Value


def _window(layer: Layer, shape: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> dict[str, Any]:
    """Height and width of the result, and how many rows are added before and after, as TensorFlow counts them."""
    dilation = layer.pair("dilation_rate") if "dilation_rate" in layer.config else (1, 1)
    same = layer.config.get("padding") == "same"
    before, after, out = [], [], []
    for length, kernel, stride, step in zip(shape, size, strides, dilation, strict=True):
        reach = (kernel - 1) * step + 1
        made = -(-length // stride) if same else (length - reach) // stride + 1
        if made < 1:
            raise layer.wrong(f"at least {reach} rows and columns", shape)
        added = max((made - 1) * stride + reach - length, 0) if same else 0
        out.append(made)
        before.append(added // 2)
        after.append(added - added // 2)
    return {"out": (out[0], out[1]), "pads": [*before, *after], "dilations": list(dilation)}


def _convolve(net: Network, layer: Layer, x: Value, kernel: np.ndarray, bias: np.ndarray | None, group: int) -> Value:
    """A convolution with `kernel` (out, in / group, height, width)."""
    height, width, _ = layer.map_of(x)
    strides = layer.pair("strides")
    window = _window(layer, (height, width), kernel.shape[2:], strides)
    inputs = [x.name, net.held(kernel), *([net.held(bias)] if bias is not None else [])]
    return net.node(
        "Conv", inputs, (*window["out"], kernel.shape[0]), kernel_shape=list(kernel.shape[2:]), strides=list(strides),
        pads=window["pads"], dilations=window["dilations"], group=group,
    )  # fmt: skip


def conv(net: Network, layer: Layer, x: Value) -> Value:
    """A convolution with its activation."""
    filters, groups = int(layer.number("filters")), int(layer.number("groups", 1))
    channels = layer.map_of(x)[2]
    if groups < 1 or channels % groups or filters % groups:
        raise layer.wrong(f"groups that divide {channels} and {filters}", groups)
    shape = (*layer.pair("kernel_size"), channels // groups, filters)
    bias = [(filters,)] if layer.flag("use_bias", True) else []
    kernel, *rest = layer.weights(shape, *bias)
    made = _convolve(net, layer, x, kernel.transpose(3, 2, 0, 1), rest[0] if rest else None, groups)
    return finish(net, layer, made)


def _deep(kernel: np.ndarray) -> np.ndarray:
    height, width, channels, each = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * each, 1, height, width)


def depthwise(net: Network, layer: Layer, x: Value) -> Value:
    """A convolution of each channel by itself."""
    channels, each = layer.map_of(x)[2], int(layer.number("depth_multiplier", 1))
    bias = [(channels * each,)] if layer.flag("use_bias", True) else []
    kernel, *rest = layer.weights((*layer.pair("kernel_size"), channels, each), *bias)
    made = _convolve(net, layer, x, _deep(kernel), rest[0] if rest else None, channels)
    return finish(net, layer, made)


def separable(net: Network, layer: Layer, x: Value) -> Value:
    """A convolution of each channel by itself, then one of all channels at each place."""
    channels, each = layer.map_of(x)[2], int(layer.number("depth_multiplier", 1))
    filters = int(layer.number("filters"))
    bias = [(filters,)] if layer.flag("use_bias", True) else []
    deep, point, *rest = layer.weights(
        (*layer.pair("kernel_size"), channels, each), (1, 1, channels * each, filters), *bias
    )
    made = _convolve(net, layer, x, _deep(deep), None, channels)
    inputs = [made.name, net.held(point.transpose(3, 2, 0, 1)), *([net.held(rest[0])] if rest else [])]
    return finish(net, layer, net.node("Conv", inputs, (*made.shape[:2], filters), kernel_shape=[1, 1]))


def pool(op: str) -> Build:
    """How a layer is built that takes the maximum or the mean of windows; means leave out what was added."""

    def build(net: Network, layer: Layer, x: Value) -> Value:
        height, width, channels = layer.map_of(x)
        size = layer.pair("pool_size")
        strides = size if layer.config.get("strides") is None else layer.pair("strides")
        window = _window(layer, (height, width), size, strides)
        shape = (*window["out"], channels)
        return net.node(op, [x.name], shape, kernel_shape=list(size), strides=list(strides), pads=window["pads"])

    return build


def global_pool(op: str) -> Build:
    """How a layer is built that takes the maximum or the mean of a whole map."""

    def build(net: Network, layer: Layer, x: Value) -> Value:
        channels = layer.map_of(x)[2]
        made = net.node(op, [x.name], (1, 1, channels))
        return made if layer.flag("keepdims", False) else net.node("Flatten", [made.name], (channels,), axis=1)

    return build


def zero_padding(net: Network, layer: Layer, x: Value) -> Value:
    """Rows and columns of zeros around a map."""
    height, width, channels = layer.map_of(x)
    value = layer.config.get("padding")
    sides = [value, value] if whole(value) else value if isinstance(value, list) and len(value) == 2 else []
    added = [n for side in sides for n in (side if isinstance(side, list) and len(side) == 2 else [side, side])]
    rows = [n for n in added if whole(n) and 0 <= n <= MAX_SIDE]
    if len(rows) != 4 or len(added) != 4:
        raise layer.wrong("numbers of rows and columns as padding", value)
    top, bottom, left, right = rows
    pads = net.held([0, 0, top, left, 0, 0, bottom, right])
    return net.node("Pad", [x.name, pads], (height + top + bottom, width + left + right, channels))

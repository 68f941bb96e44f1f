"""Layers that treat every number or every channel alike, linear layers, and those that reorder or join."""

from __future__ import annotations

import numpy as np

from vetgate.formats.keras.activations import activate, clipped, finish, softmax
from vetgate.formats.keras.layer import Layer
from vetgate.formats.keras.network import Network, Value

# what Keras divides by at least
LEAST_SCALE = 1e-7


def dense(net: Network, layer: Layer, x: Value) -> Value:
    """A linear map of the last axis of Keras, with its activation."""
    units, given = int(layer.number("units")), x.shape[-1]
    kernel, *rest = layer.weights((given, units), *([(units,)] if layer.flag("use_bias", True) else []))
    bias = rest[0] if rest else np.zeros(units, np.float32)
    shape = (*x.shape[:-1], units)
    if x.is_map:
        inputs = [x.name, net.held(kernel.T.reshape(units, given, 1, 1)), net.held(bias)]
        made = net.node("Conv", inputs, shape, kernel_shape=[1, 1])
    elif len(x.shape) == 1:
        made = net.node("Gemm", [x.name, net.held(kernel.T), net.held(bias)], shape, transB=1)
    else:
        product = net.node("MatMul", [x.name, net.held(kernel)], shape)
        made = net.node("Add", [product.name, net.held(bias)], shape)
    return finish(net, layer, made)


def batch_norm(net: Network, layer: Layer, x: Value) -> Value:
    """Batch normalisation by its stored statistics."""
    layer.check_last_axis(x)
    channels = x.shape[-1]
    scaled, centred = layer.flag("scale", True), layer.flag("center", True)
    found = layer.weights(*[(channels,)] * (2 + scaled + centred))
    gamma = found.pop(0) if scaled else np.ones(channels, np.float32)
    beta = found.pop(0) if centred else np.zeros(channels, np.float32)
    epsilon = layer.number("epsilon", 1e-3)
    if x.is_map:
        inputs = [x.name, *map(net.held, (gamma, beta, *found))]
        return net.node("BatchNormalization", inputs, x.shape, epsilon=epsilon)
    mean, variance = (array.astype(np.float64) for array in found)
    factor = gamma / np.sqrt(variance + epsilon)
    scaled_x = net.node("Mul", [x.name, net.held(factor)], x.shape)
    return net.node("Add", [scaled_x.name, net.held(beta - mean * factor)], x.shape)


def rescaling(net: Network, layer: Layer, x: Value) -> Value:
    """A scale and an offset."""
    scale, offset = (layer.numbers(layer.config.get(key, 0), x.shape[-1]) for key in ("scale", "offset"))
    made = net.node("Mul", [x.name, net.spread(scale, x)], x.shape)
    return net.node("Add", [made.name, net.spread(offset, x)], x.shape) if offset.any() else made


def normalization(net: Network, layer: Layer, x: Value) -> Value:
    """The value less a mean, by the root of a variance."""
    layer.check_last_axis(x)
    given = [layer.config.get("mean"), layer.config.get("variance")]
    if given == [None, None] and len(layer.arrays) == 3:
        given = list(layer.arrays[:2])  # the third says of how many images
    mean, variance = (layer.numbers(value, x.shape[-1]) for value in given)
    if (variance < 0).any():
        raise layer.wrong("a variance of at least 0", variance)
    centred = net.node("Sub", [x.name, net.spread(mean, x)], x.shape)
    return net.node("Div", [centred.name, net.spread(np.maximum(np.sqrt(variance), LEAST_SCALE), x)], x.shape)


def relu(net: Network, layer: Layer, x: Value) -> Value:
    """A rectifier, with a slope or a maximum."""
    slope, threshold = layer.number("negative_slope", 0), layer.number("threshold", 0)
    highest = None if layer.config.get("max_value") is None else layer.number("max_value")
    if threshold or (slope and highest is not None):
        raise layer.wrong("no threshold, and a slope or a maximum", dict(layer.config))
    if highest is not None:
        return clipped(net, x, highest)
    return net.node("LeakyRelu", [x.name], x.shape, alpha=slope) if slope else activate(net, "relu", x)


def leaky_relu(net: Network, layer: Layer, x: Value) -> Value:
    """A rectifier with a slope."""
    slope = layer.number("alpha" if "alpha" in layer.config else "negative_slope")
    return net.node("LeakyRelu", [x.name], x.shape, alpha=slope)


def softmax_layer(net: Network, layer: Layer, x: Value) -> Value:
    """Softmax as a layer."""
    layer.check_last_axis(x)
    return softmax(net, x)

"""The activations of Keras, each as operators that compute exactly the same."""

from __future__ import annotations

import numpy as np

from vetgate.formats.keras.layer import Layer
from vetgate.formats.keras.network import Network, Value

PLAIN = {
    "relu": "Relu", "elu": "Elu", "selu": "Selu", "gelu": "Gelu", "sigmoid": "Sigmoid", "tanh": "Tanh",
    "softplus": "Softplus", "softsign": "Softsign", "exponential": "Exp", "mish": "Mish",
}  # fmt: skip
# before Keras 3 hard_sigmoid had another slope
SINCE_3 = ("hard_sigmoid", "hard_silu", "hard_swish")
LEAKY_SLOPE = 0.2
SIX = 6.0
NAMES = (*PLAIN, *SINCE_3, "linear", "relu6", "leaky_relu", "silu", "swish", "softmax")


def activate(net: Network, name: str, x: Value) -> Value:
    """The value after an activation that is among NAMES."""
    match name:
        case "linear":
            return x
        case "relu6":
            return clipped(net, x, SIX)
        case "leaky_relu":
            return net.node("LeakyRelu", [x.name], x.shape, alpha=LEAKY_SLOPE)
        case "silu" | "swish":
            return net.node("Mul", [x.name, net.node("Sigmoid", [x.name], x.shape).name], x.shape)
        case "softmax":
            return softmax(net, x)
        case "hard_sigmoid":
            return net.node("HardSigmoid", [x.name], x.shape, alpha=1 / SIX, beta=0.5)
        case "hard_silu" | "hard_swish":
            return net.node("HardSwish", [x.name], x.shape)
        case _:
            return net.node(PLAIN[name], [x.name], x.shape)


def finish(net: Network, layer: Layer, x: Value) -> Value:
    """The value after the activation that a layer names."""
    return activate(net, layer.config.get("activation") or "linear", x)


def clipped(net: Network, x: Value, highest: float) -> Value:
    """The value between 0 and `highest`."""
    return net.node("Clip", [x.name, *(net.held(np.array(b, np.float32)) for b in (0, highest))], x.shape)


def softmax(net: Network, x: Value) -> Value:
    """Softmax along the last axis of Keras."""
    return net.node("Softmax", [x.name], x.shape, axis=1 if x.is_map else len(x.shape))

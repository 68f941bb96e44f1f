"""Layers that reorder or join values, and those that give what they are given."""

from __future__ import annotations

import math

from vetgate.formats.keras.layer import Build, Layer, whole
from vetgate.formats.keras.network import Network, Value


def flatten(net: Network, layer: Layer, x: Value) -> Value:
    """All numbers in the order of Keras."""
    return net.node("Flatten", [net.keras_order(x).name], (math.prod(x.shape),), axis=1)


def reshape(net: Network, layer: Layer, x: Value) -> Value:
    """The same numbers, in the order of Keras, in another shape."""
    target, size = layer.config.get("target_shape"), math.prod(x.shape)
    if not isinstance(target, list) or not 1 <= len(target) <= 4 or not all(whole(n) for n in target):
        raise layer.wrong("a target_shape of one to four numbers", target)
    known = math.prod(n for n in target if n != -1)
    if target.count(-1) > 1 or any(n < 1 and n != -1 for n in target) or size % known:
        raise layer.wrong(f"a target_shape of {size} numbers", target)
    shape = tuple(size // known if n == -1 else n for n in target)
    if math.prod(shape) != size:
        raise layer.wrong(f"a target_shape of {size} numbers", target)
    made = net.node("Reshape", [net.keras_order(x).name, net.held([0, *shape])], shape)
    return net.in_order(made.name, shape)


def idle(net: Network, layer: Layer, x: Value) -> Value:
    """What the layer was given."""
    return x


def elementwise(op: str) -> Build:
    """How a layer is built that joins values number by number."""

    def join(net: Network, layer: Layer, *values: Value) -> Value:
        made = values[0]
        for other in values[1:]:
            pairs = list(zip(made.shape, other.shape, strict=False))
            if len(made.shape) != len(other.shape) or any(a != b and 1 not in (a, b) for a, b in pairs):
                raise layer.wrong("inputs of one shape", [value.shape for value in values])
            made = net.node(op, [made.name, other.name], tuple(max(pair) for pair in pairs))
        return made

    return join


def concatenate(net: Network, layer: Layer, *values: Value) -> Value:
    """Values one after the other along an axis of Keras."""
    rank, axis = len(values[0].shape), layer.config.get("axis", -1)
    axis = axis if not whole(axis) or axis > 0 else axis + rank + 1
    if not whole(axis) or not 1 <= axis <= rank or any(len(value.shape) != rank for value in values):
        raise layer.wrong("inputs of one rank and one of their axes", axis)
    place = axis - 1
    if len({(v.shape[:place], v.shape[place + 1 :]) for v in values}) > 1:
        raise layer.wrong("inputs that fit", [value.shape for value in values])
    shape = (*values[0].shape[:place], sum(v.shape[place] for v in values), *values[0].shape[place + 1 :])
    # height, width, channels of Keras are the axes 2, 3, 1 of the file
    return net.node("Concat", [v.name for v in values], shape, axis=(2, 3, 1)[place] if rank == 3 else axis)

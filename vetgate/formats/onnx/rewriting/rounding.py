"""Constants so large that a signal is lost beside them in float32, and found again by runtimes that merge operators.

A bias of 2^25 before a batch normalisation with that mean leaves nothing of what the convolution found; onnxruntime
folds the two, the constants cancel before any image is there, and the signal is back. No test on images finds that
behind a gate that one image opens, so the size of constants is bounded in units of the layer's own weights.

Source    float32 keeps 24 bits: adding c to a signal s loses |c| / |s| * 2^-24 of it.
Deviates  Static, from weights alone: a signal is as large as a layer's weights make of inputs of size one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.graph import Graph
from vetgate.formats.onnx.nodes import Node

# beside the signal, of which 2^-10 may be lost; and where constants cancel, beside what is left, of which 2^-14 may be
LARGEST, LARGEST_CANCELLED = 2.0**14, 2.0**10
# of what weights make of inputs of size one, far from where float32 ends
LARGEST_SCALE = 1e9
# of any number, such as one that masks a place
LARGEST_NUMBER = 1e31
LINEAR = ("Conv", "Gemm", "MatMul")
AFFINE = ("BatchNormalization", "Add", "Sub", "Mul", "Div")
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Signal:
    """What a chain of maps by constants makes of an input of size one, for each value of an image that broadcasts.

    `scale` of the signal, `offset` beside it, and the largest `peak` that an offset had on the way, as it counts here.
    `linear`: the chain begins with weights.
    """

    scale: Array
    offset: Array
    peak: Array
    linear: bool

    def times(self, factor: Array) -> Signal:
        """The signal multiplied."""
        size = np.abs(factor)
        return Signal(self.scale * size, self.offset * factor, self.peak * size, self.linear)

    def plus(self, offset: Array, *, scale: Array | float = 0.0, peak: Array | float = 0.0) -> Signal:
        """The signal with an offset, or with another signal, added."""
        total = self.offset + offset
        return Signal(
            self.scale + scale,
            total,
            np.maximum(np.maximum(self.peak, peak), np.maximum(np.abs(offset), np.abs(total))),
            self.linear,
        )


ONE = Signal(np.ones(()), np.zeros(()), np.zeros(()), linear=False)


def check_rounding(graph: Graph, ranks: Mapping[str, int]) -> None:
    """Refuse a settled graph in which constants drown a signal; raises NotUnderstood naming the operator.

    `ranks` is how many axes each computed value has.
    """
    signals: dict[str, Signal] = {}
    constants = {name: c.value for name, c in graph.constants.items() if c.value.dtype == np.float32}
    readers = Counter(name for node in graph.nodes if node.op not in AFFINE for name in node.inputs)
    readers[graph.output] += 1
    for node in graph.nodes:
        if node.op != "Clip":
            _check_numbers(node, [constants[name] for name in node.inputs if name in constants])
        signal = _signal(node, signals, constants, ranks)
        if signal is None:
            continue
        signals[node.outputs[0]] = signal
        # between maps by constants, nothing but their sum counts
        _check(node, signal, last=readers[node.outputs[0]] > 0)


def _check_numbers(node: Node, held: Sequence[Array]) -> None:
    largest = max((max(-float(value.min()), float(value.max())) for value in held if value.size), default=0.0)
    if largest > LARGEST_NUMBER:
        raise NotUnderstood(
            f"expected numbers of at most {LARGEST_NUMBER:.0e} in {node}, got {largest:.2g}, whose sums and products "
            "leave float32; export the model with smaller ones"
        )


def _signal(
    node: Node, signals: dict[str, Signal], constants: dict[str, Array], ranks: Mapping[str, int]
) -> Signal | None:
    if node.op in LINEAR:
        return _begun(node, constants)
    if node.op not in AFFINE:
        return None
    first = node.inputs[0]
    if node.op == "BatchNormalization":
        given = [constants.get(name) for name in node.inputs[1:]]
        epsilon = node.attributes.get("epsilon", 1e-5)
        if any(value is None for value in given) or not isinstance(epsilon, float):
            return None
        signal = signals.get(first, ONE)
        # one value for each channel, and behind that the sides of an image
        sides = [1] * (ranks[first] - 2)
        factor, shift, mean, variance = (v.reshape(-1, *sides).astype(np.float64) for v in given if v is not None)
        return signal.plus(-mean).times(factor / np.sqrt(variance + epsilon)).plus(shift)
    held = [constants.get(name) for name in node.inputs]
    one, two = (signals.get(name, ONE) for name in node.inputs)
    left, right = held
    if left is None and right is None:
        sign = {"Add": 1.0, "Sub": -1.0}.get(node.op)
        return None if sign is None else one.plus(sign * two.offset, scale=two.scale, peak=two.peak)
    value = _row(right if right is not None else left, ranks[node.outputs[0]])
    match node.op:
        case "Add":
            return (one if right is not None else two).plus(value)
        case "Sub":
            return one.plus(-value) if right is not None else two.times(np.array(-1.0)).plus(value)
        case "Mul":
            return (one if right is not None else two).times(value)
    with np.errstate(divide="ignore"):
        return one.times(1 / value) if right is not None else None


def _row(value: Array | None, rank: int) -> Array:
    # without the axis of the batch
    assert value is not None
    return (value[0] if value.ndim == rank else value).astype(np.float64)


def _begun(node: Node, constants: dict[str, Array]) -> Signal | None:
    weight = constants.get(node.inputs[1])
    if weight is None or weight.ndim < 2:
        return None
    bias = constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    if node.op == "Conv":
        rows = [float(np.abs(row).sum(dtype=np.float64)) for row in weight]
        scale = np.array(rows).reshape(-1, *[1] * (weight.ndim - 2))
        bias = None if bias is None else bias.reshape(scale.shape).astype(np.float64)
    else:
        turned = weight if node.attributes.get("transB", 0) else weight.swapaxes(-1, -2)
        scale = np.array([np.abs(row).sum(axis=-1, dtype=np.float64) for row in turned])
        alpha, beta = (node.attributes.get(name, 1.0) for name in ("alpha", "beta"))
        if isinstance(alpha, float) and isinstance(beta, float):
            scale = scale * abs(alpha)
            bias = None if bias is None else _row(bias, 2) * beta
    begun = Signal(scale, np.zeros_like(scale), np.zeros_like(scale), linear=True)
    return begun if bias is None else begun.plus(bias)


def _check(node: Node, signal: Signal, *, last: bool) -> None:
    if not float(signal.scale.max()) <= LARGEST_SCALE:
        raise NotUnderstood(
            f"expected weights at {node} that make at most {LARGEST_SCALE:.0e} of an input of size one, got "
            f"{signal.scale.max():.2g}; hand in a sound model"
        )
    bounds = []
    if signal.linear:
        bounds.append(LARGEST * np.maximum(signal.scale, np.median(signal.scale)))
    if last:
        left = signal.scale + np.abs(signal.offset)
        bounds.append(LARGEST_CANCELLED * np.maximum(left, np.median(left)))
    if not all(bool((signal.peak <= bound).all()) for bound in bounds):
        raise NotUnderstood(
            f"expected constants at {node} of the size of what its weights make of an image, got "
            f"{signal.peak.max():.2g} beside {np.median(signal.scale):.2g}: float32 loses the signal, and runtimes "
            "that merge operators find it again; fold the constants into one"
        )

"""Where a value lies for every image, as far as the operators alone tell; so that no operator can give NaN.

Runtimes take NaN in different ways: one gives max(NaN, 0) = 0, another NaN. An operator that is not defined everywhere
(a root, a logarithm, a division) could open a gate in one of them for one image only, which no test on images finds. So
what it takes must lie where it is defined, whatever the image.

Source    Interval arithmetic, one interval for all values of a tensor; maps by weights give any number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.graph import Graph
from vetgate.formats.onnx.nodes import Node

Interval = tuple[float, float]
ANY: Interval = (-math.inf, math.inf)
# divisors as small as normalisations add; what only underflows to zero is not above it, and runtimes approximate it
SMALL = 1e-13
# beyond it, what float32 leaves of an angle is no angle any more
WIDE = 1e3
# the share of its size by which what is normalised must vary, of which float32 keeps 24 bits
NARROW = 2.0**-6


def check_ranges(graph: Graph) -> None:
    """Refuse a settled graph with an operator that may be given what it is not defined for; raises NotUnderstood."""
    found: dict[str, Interval] = {graph.input: (0.0, 1.0)}
    for name, constant in graph.constants.items():
        value = constant.value
        found[name] = (float(value.min()), float(value.max())) if value.size and value.dtype != np.bool_ else ANY
    for node in graph.nodes:
        given = [found.get(name, ANY) if name else ANY for name in node.inputs]
        _check(node, given, [name in graph.constants for name in node.inputs])
        low, high = RANGES[node.op](node, given) if node.op in RANGES else ANY
        found[node.outputs[0]] = ANY if math.isnan(low) or math.isnan(high) else (low, high)


def _check(node: Node, given: Sequence[Interval], held: Sequence[bool]) -> None:
    def refuse(expected: str, got: Interval) -> NotUnderstood:
        return NotUnderstood(
            f"expected {node} to take only {expected} whatever the image, got {got[0]:.3g} to {got[1]:.3g}, where "
            "runtimes give NaN or not; bound it before, by a ReLU, an absolute value or a Clip and a small constant"
        )

    match node.op:
        case "Sqrt" if given[0][0] < 0:
            raise refuse("numbers from zero on", given[0])
        case "Log" | "ReduceLogSum" if given[0][0] < SMALL:
            raise refuse("numbers above zero", given[0])
        case "Reciprocal" if _near_zero(given[0]):
            raise refuse("numbers other than zero", given[0])
        case "Div" if _near_zero(given[1]):
            raise refuse("divisors other than zero", given[1])
        case "Sin" | "Cos" if max(-given[0][0], given[0][1]) > WIDE:
            raise refuse(f"numbers of -{WIDE:.0f} to {WIDE:.0f}", given[0])
        case "InstanceNormalization" | "GroupNormalization" | "LayerNormalization":
            # what is left of the same number everywhere, once its mean is gone, is how it was rounded
            if _far(given[0]):
                raise refuse(f"numbers of -{WIDE:.0f} to {WIDE:.0f}, or of any size", given[0])
            if _narrow(given[0]):
                raise refuse("numbers that vary with the image", given[0])
        case "Max" | "Min" | "Clip" if _overruled(node, given, held):
            raise NotUnderstood(
                f"expected {node} to leave something of every image, got a bound that none passes: where the same "
                "number stands for every image, what comes after it is rounding; fold it into a constant"
            )
        case "Pow":
            low, high = given[1]
            whole = low == high and low == round(low)
            if given[0][0] < 0 and not whole:
                raise refuse("numbers from zero on", given[0])
            if low < 0 and _near_zero(given[0]):
                raise refuse("numbers other than zero", given[0])


def _near_zero(given: Interval) -> bool:
    return given[0] < SMALL and given[1] > -SMALL


def _far(given: Interval) -> bool:
    # bounded, and far from zero; where nothing is known it may be anywhere
    low, high = given
    return low > WIDE or high < -WIDE or WIDE < max(-low, high) < math.inf


def _narrow(given: Interval) -> bool:
    # of what tells one image from another float32 keeps too few bits; zero everywhere is exact
    low, high = given
    return 0 < max(-low, high) < math.inf and high - low <= NARROW * max(-low, high)


def _overruled(node: Node, given: Sequence[Interval], held: Sequence[bool]) -> bool:
    """Whether a bound lies where no image gets: a lower one above all that is computed, or an upper one below."""
    if node.op == "Clip":
        lower, upper = ([given[i]] if i < len(given) and node.inputs[i] else [] for i in (1, 2))
        computed = [given[0]]
    else:
        bounds = [one for one, constant in zip(given, held, strict=True) if constant]
        lower, upper = (bounds, []) if node.op == "Max" else ([], bounds)
        computed = [one for one, constant in zip(given, held, strict=True) if not constant]
    least, most = min(low for low, _ in computed), max(high for _, high in computed)
    return any(high >= most for _, high in lower) or any(low <= least for low, _ in upper)


def _monotone(function: Callable[[float], float]) -> Callable[[Node, Sequence[Interval]], Interval]:
    return lambda node, given: (function(given[0][0]), function(given[0][1]))


def _products(one: Interval, two: Interval) -> Interval:
    ends = [0.0 if 0 in (a, b) else a * b for a in one for b in two]
    return min(ends), max(ends)


def _mul(node: Node, given: Sequence[Interval]) -> Interval:
    low, high = _products(given[0], given[1])
    return (max(low, 0.0), high) if node.inputs[0] == node.inputs[1] else (low, high)


def _div(node: Node, given: Sequence[Interval]) -> Interval:
    low, high = given[1]
    if low <= 0 <= high:
        return ANY
    return _products(given[0], (1 / high, 1 / low))


def _pow(node: Node, given: Sequence[Interval]) -> Interval:
    low, high = given[1]
    if low == high and low == round(low) and round(low) % 2 == 0:
        return 0.0, math.inf
    return (0.0, math.inf) if given[0][0] >= 0 else ANY


def _abs(node: Node, given: Sequence[Interval]) -> Interval:
    low, high = given[0]
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _between(low: float, high: float) -> Callable[[Node, Sequence[Interval]], Interval]:
    return lambda node, given: (low, high)


def _clip(node: Node, given: Sequence[Interval]) -> Interval:
    low, high = given[0]
    if len(given) > 1 and node.inputs[1]:
        low, high = max(low, given[1][0]), max(high, given[1][0])
    if len(given) > 2:
        low, high = min(low, given[2][1]), min(high, given[2][1])
    return low, high


def _joined(node: Node, given: Sequence[Interval]) -> Interval:
    return min(low for low, _ in given), max(high for _, high in given)


def _with_zero(node: Node, given: Sequence[Interval]) -> Interval:
    return min(given[0][0], 0.0), max(given[0][1], 0.0)


def _summed(node: Node, given: Sequence[Interval]) -> Interval:
    # of any number of values, at least one
    low, high = given[0]
    return (low if low >= 0 else -math.inf), (high if high <= 0 else math.inf)


def _norm(node: Node, given: Sequence[Interval]) -> Interval:
    low, high = given[0]
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), math.inf


def _same(node: Node, given: Sequence[Interval]) -> Interval:
    return given[0]


def _pad(node: Node, given: Sequence[Interval]) -> Interval:
    border = given[2] if len(given) > 2 else (0.0, 0.0)
    return given[0] if node.attributes.get("mode") != "constant" else _joined(node, [given[0], border])


def _root(value: float) -> float:
    return math.sqrt(max(value, 0.0)) if value < math.inf else math.inf


def _log(value: float) -> float:
    return math.log(value) if 0 < value < math.inf else math.inf if value > 0 else -math.inf


RANGES: dict[str, Callable[[Node, Sequence[Interval]], Interval]] = {
    "Add": lambda node, given: (given[0][0] + given[1][0], given[0][1] + given[1][1]),
    "Sub": lambda node, given: (given[0][0] - given[1][1], given[0][1] - given[1][0]),
    "Neg": lambda node, given: (-given[0][1], -given[0][0]),
    "Mul": _mul,
    "Div": _div,
    "Reciprocal": lambda node, given: _div(node, [(1.0, 1.0), given[0]]),
    "Pow": _pow,
    "Abs": _abs,
    "Exp": _monotone(_exp),
    "Sqrt": _monotone(_root),
    "Log": _monotone(_log),
    "Relu": _monotone(lambda value: max(value, 0.0)),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax"), _between(0.0, 1.0)),
    "Softplus": _between(0.0, math.inf),
    "Tanh": _between(-1.0, 1.0),
    "Erf": _between(-1.0, 1.0),
    "Sin": _between(-1.0, 1.0),
    "Cos": _between(-1.0, 1.0),
    "Softsign": _between(-1.0, 1.0),
    "Clip": _clip,
    "Max": lambda node, given: (max(low for low, _ in given), max(high for _, high in given)),
    "Min": lambda node, given: (min(low for low, _ in given), min(high for _, high in given)),
    "Concat": _joined,
    "Where": lambda node, given: _joined(node, given[1:]),
    "Pad": _pad,
    "AveragePool": _with_zero,
    "ReduceSum": _summed,
    "ReduceL2": _norm,
    "ReduceL1": _norm,
    "ReduceSumSquare": _between(0.0, math.inf),
    "Identity": _same,
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"), _same),
    **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Gather", "Slice"), _same),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth", "Tile", "GatherND"), _same),
}

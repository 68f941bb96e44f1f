"""What an operator makes of constants, as `arithmetic` and `arrangement` have it; the others as torch computes them.

Numbers that are not finite, and constants beyond all measure, are errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from vetgate.formats.onnx.build import build
from vetgate.formats.onnx.folding import arithmetic, arrangement
from vetgate.formats.onnx.folding.constants import MAX_FOLDED, TYPES, Array, Given, first, integer, refuse
from vetgate.formats.onnx.nodes import Node
from vetgate.formats.onnx.operands import Operands

# of those that are computed in torch
WHOLE_TOO = ("Trilu", "GatherND")


def fold(node: Node, given: Given, opset: int) -> tuple[Array, ...]:
    """The outputs of a node whose inputs are all constant (None: left out); raises NotUnderstood."""
    function = FOLDS.get(node.op, _as_in_torch)
    kinds = {value.dtype for value in given if value is not None}
    if node.op in ONE_TYPE and len(kinds) > 1:
        raise refuse(node, "inputs of one type", " and ".join(sorted(map(str, kinds))))
    try:
        if _size(node, given) > MAX_FOLDED:
            raise ValueError("more values than are computed beforehand")
        with np.errstate(all="ignore"):
            made = function(node, given, opset)
    except (ValueError, IndexError, TypeError, OverflowError, RuntimeError) as error:
        raise refuse(node, "constants that fit each other", str(error)[:200]) from error
    # BatchNormalization may name further outputs; nothing uses them
    values = tuple(np.asarray(value) for value in (made if isinstance(made, list) else [made] * len(node.outputs)))
    for value in values:
        if value.size > MAX_FOLDED or (value.dtype == np.float32 and not np.isfinite(value).all()):
            raise refuse(node, "a finite, moderate constant", "another")
        if value.dtype not in TYPES.values():
            raise refuse(node, "float32, whole numbers or truth values", str(value.dtype))
    return values


def _size(node: Node, given: Given) -> int:
    # how many values come of it, where they may be many more than went in
    shapes = [value.shape for value in given if value is not None]
    if node.op == "MatMul" and len(shapes) == 2 and min(map(len, shapes)) > 1:
        return int(math.prod(np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])) * shapes[0][-2] * shapes[1][-1])
    if node.op == "Gather" and len(shapes) == 2 and shapes[0]:
        axis = integer(node, "axis", 0)
        return int(math.prod(shapes[0]) // max(1, shapes[0][axis]) * math.prod(shapes[1]))
    if node.op in ONE_TYPE - {"MatMul", "Concat", "Range"} or node.op == "Where":
        return int(math.prod(np.broadcast_shapes(*shapes)))
    return 0


def _as_in_torch(node: Node, given: Given, opset: int) -> Array:
    value = first(given)
    if value.dtype != np.float32 and node.op not in WHOLE_TOO:
        raise ValueError(f"{value.dtype}")
    constants = {name: held for name, held in zip(node.inputs, given, strict=True) if held is not None}
    built = build(Operands(node, constants, frozenset({0}), opset))
    if built.inputs != (0,):
        raise ValueError("expected one operand beside constants")
    with torch.no_grad():
        made: Array = built.module.eval()(torch.from_numpy(value.copy())).numpy()
    return made


FOLDS: dict[str, Callable[[Node, Given, int], Array | list[Array]]] = {
    "Add": arithmetic.pairs(lambda a, b: a + b, np.add),
    "Sub": arithmetic.pairs(lambda a, b: a - b, np.subtract),
    "Mul": arithmetic.pairs(lambda a, b: a * b, np.multiply),
    "Div": arithmetic.divided,
    "Max": arithmetic.pairs(max, np.maximum),
    "Min": arithmetic.pairs(min, np.minimum),
    "Sum": arithmetic.pairs(None, np.add),
    "Pow": arithmetic.pairs(None, np.power),
    "Mod": arithmetic.mod,
    "Neg": arithmetic.unary(lambda a: -a, np.negative),
    "Abs": arithmetic.unary(abs, np.abs),
    "Floor": arithmetic.unary(None, np.floor),
    "Ceil": arithmetic.unary(None, np.ceil),
    "Round": arithmetic.unary(None, np.round),
    "Sign": arithmetic.unary(lambda a: (a > 0) - (a < 0), np.sign),
    "CumSum": arithmetic.cumulated,
    "Clip": arithmetic.clip,
    "BatchNormalization": arithmetic.batch_norm,
    "Equal": arithmetic.compared(np.equal),
    "Less": arithmetic.compared(np.less),
    "LessOrEqual": arithmetic.compared(np.less_equal),
    "Greater": arithmetic.compared(np.greater),
    "GreaterOrEqual": arithmetic.compared(np.greater_equal),
    "Not": arithmetic.logical(np.logical_not),
    "And": arithmetic.logical(np.logical_and),
    "Or": arithmetic.logical(np.logical_or),
    "Xor": arithmetic.logical(np.logical_xor),
    "Cast": arithmetic.cast,
    "Where": arrangement.where,
    "Identity": lambda node, given, opset: first(given),
    "Shape": lambda node, given, opset: arrangement.shape_of(node, first(given).shape),
    "Size": lambda node, given, opset: np.array(first(given).size, np.int64),
    "Gather": arrangement.gather,
    "Reshape": arrangement.reshape,
    "Transpose": arrangement.transpose,
    "Squeeze": arrangement.squeeze,
    "Unsqueeze": arrangement.unsqueeze,
    "Flatten": arrangement.flatten,
    "Concat": arrangement.concat,
    "Slice": arrangement.taken,
    "Split": arrangement.split,
    "Expand": arrangement.expand,
    "ConstantOfShape": arrangement.constant_of_shape,
    "Range": arrangement.counted,
    "Tile": arrangement.tile,
    "MatMul": arithmetic.matmul,
    "ReduceSum": arithmetic.reduced(sum, np.sum),
    "ReduceProd": arithmetic.reduced(math.prod, np.prod),
    "ReduceMax": arithmetic.reduced(max, np.max),
    "ReduceMin": arithmetic.reduced(min, np.min),
    "ReduceMean": arithmetic.reduced(None, np.mean),
    "ReduceL2": arithmetic.reduced(None, arithmetic.length),
}
ONE_TYPE = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Pow", "Mod", "MatMul", "Concat", "Range"} | {
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"
}  # fmt: skip

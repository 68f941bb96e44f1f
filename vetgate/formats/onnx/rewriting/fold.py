"""What an operator makes of constants, by ONNX's own rules of types; whatever runtimes may round otherwise is refused.

Source    ONNX operator specifications, opset 21: one type for both sides, integer division and Cast truncate, Mod has
          the sign of the divisor unless `fmod` is 1.
Deviates  Whole numbers that leave their type or that float32 rounds, and numbers that are not finite are errors here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.build import build
from vetgate.formats.onnx.nodes import Node
from vetgate.formats.onnx.operands import Operands

MAX_FOLDED = 1 << 26
# whole numbers are computed exactly, one by one
MAX_WHOLE = 1 << 16
EXACT_IN_FLOAT32 = 1 << 24
TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_}
# these are read as float32
# of those that are computed in torch
WHOLE_TOO = ("Trilu", "GatherND")
WIDER = {10: 1, 11: 1, 16: 1}
Array = np.ndarray
Given = Sequence[Array | None]


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
        axis = _integer(node, "axis", 0)
        return int(math.prod(shapes[0]) // max(1, shapes[0][axis]) * math.prod(shapes[1]))
    if node.op in ONE_TYPE - {"MatMul", "Concat", "Range"} or node.op == "Where":
        return int(math.prod(np.broadcast_shapes(*shapes)))
    return 0


def refuse(node: Node, expected: str, got: str) -> NotUnderstood:
    """The error for what cannot be written anew."""
    return NotUnderstood(f"expected {expected} for {node}, got {got}; export the model without it")


def exact(node: Node, value: Array, kind: np.dtype) -> Array:
    """Whole numbers (of any size, as objects) in the type `kind`; refuses what does not fit in it."""
    bounds = np.iinfo(kind)
    flat = value.reshape(-1)
    if any(not bounds.min <= int(v) <= bounds.max for v in flat):
        raise refuse(node, f"whole numbers that fit in {kind}", "larger ones, which runtimes wrap or saturate")
    made: Array = np.array([int(v) for v in flat], kind).reshape(value.shape)
    return made


def axes_of(node: Node, given: Given, index: int) -> list[int] | None:
    """Axes, an attribute in older opsets and an input in newer ones, or None."""
    named = node.attributes.get("axes")
    if isinstance(named, tuple):
        return [int(v) for v in named]
    value = given[index] if index < len(given) else None
    return None if value is None else [int(v) for v in value.reshape(-1)]


def _as_in_torch(node: Node, given: Given, opset: int) -> Array:
    value = _first(given)
    if value.dtype != np.float32 and node.op not in WHOLE_TOO:
        raise ValueError(f"{value.dtype}")
    constants = {name: held for name, held in zip(node.inputs, given, strict=True) if held is not None}
    built = build(Operands(node, constants, frozenset({0}), opset))
    if built.inputs != (0,):
        raise ValueError("expected one operand beside constants")
    with torch.no_grad():
        made: Array = built.module.eval()(torch.from_numpy(value.copy())).numpy()
    return made


def _first(given: Given) -> Array:
    value = given[0] if given else None
    if value is None:
        raise ValueError("the first input is missing")
    return value


def _integer(node: Node, name: str, default: int) -> int:
    value = node.attributes.get(name, default)
    return value if isinstance(value, int) else default


def _pairs(
    whole: Callable[[int, int], int] | None, real: Callable[[Array, Array], Array] | None
) -> Callable[[Node, Given, int], Array]:
    def compute(node: Node, given: Given, opset: int) -> Array:
        result = _first(given)
        for other in given[1:]:
            if other is None:
                raise ValueError("an input is missing")
            if result.dtype == np.float32:
                if real is None:
                    raise ValueError("floating point numbers")
                result = np.asarray(real(result, other), np.float32)
            elif result.dtype == np.bool_ or whole is None:
                raise ValueError(f"{result.dtype}")
            else:
                one, two = np.broadcast_arrays(result, other)
                if one.size > MAX_WHOLE:
                    raise ValueError(f"{one.size} whole numbers")
                made = [whole(int(a), int(b)) for a, b in zip(one.reshape(-1), two.reshape(-1), strict=True)]
                result = exact(node, np.array(made, object).reshape(one.shape), result.dtype)
        return result

    return compute


def _truncated(a: int, b: int) -> int:
    if b == 0:
        raise ValueError("a division by zero")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _divided(node: Node, given: Given, opset: int) -> Array:
    value, others = _first(given), [other for other in given[1:] if other is not None]
    alone = value.size == 1 and value.dtype != np.float32 and int(value.reshape(-1)[0]) == 1
    if alone and any(bool((np.abs(other) > 1).any()) for other in others):
        # onnxruntime merges it with a product behind it, and divides last
        raise refuse(node, "no whole 1 that is divided by more", "one, which runtimes compute in different ways")
    return _pairs(_truncated, np.divide)(node, given, opset)


def _remainder(a: int, b: int) -> int:
    if b == 0:
        raise ValueError("a division by zero")
    return a % b


def _mod(node: Node, given: Given, opset: int) -> Array:
    like_c = _integer(node, "fmod", 0)
    if like_c not in (0, 1):
        raise ValueError(f"fmod {like_c}")
    if like_c:
        return _pairs(lambda a, b: a - b * _truncated(a, b), np.fmod)(node, given, opset)
    return _pairs(_remainder, None)(node, given, opset)


def _unary(whole: Callable[[int], int] | None, real: Callable[[Array], Array]) -> Callable[[Node, Given, int], Array]:
    def compute(node: Node, given: Given, opset: int) -> Array:
        value = _first(given)
        if value.dtype == np.float32:
            return np.asarray(real(value), np.float32)
        if whole is None or value.dtype == np.bool_ or value.size > MAX_WHOLE:
            raise ValueError(str(value.dtype))
        made = np.array([whole(int(v)) for v in value.reshape(-1)], object).reshape(value.shape)
        return exact(node, made, value.dtype)

    return compute


def _compared(function: Callable[[Array, Array], Array]) -> Callable[[Node, Given, int], Array]:
    return lambda node, given, opset: np.asarray(function(*given))  # type: ignore[arg-type]


def _logical(function: Callable[..., Array]) -> Callable[[Node, Given, int], Array]:
    def compute(node: Node, given: Given, opset: int) -> Array:
        if any(value is None or value.dtype != np.bool_ for value in given):
            raise ValueError("no truth values")
        return np.asarray(function(*given))

    return compute


def _cast(node: Node, given: Given, opset: int) -> Array:
    value = _first(given)
    to = _integer(node, "to", 0)
    kind = TYPES.get(WIDER.get(to, to))
    if kind is None:
        raise ValueError(f"ONNX data type {to}")
    if value.dtype == kind:
        return value
    if kind == np.bool_:
        return np.asarray(value != 0)
    if kind == np.float32:
        if value.dtype != np.bool_ and bool((np.abs(value.astype(np.float64)) > EXACT_IN_FLOAT32).any()):
            raise ValueError("a whole number that float32 rounds")
        return value.astype(np.float32)
    return exact(node, np.array([int(v) for v in value.reshape(-1)], object).reshape(value.shape), np.dtype(kind))


def _gather(node: Node, given: Given, opset: int) -> Array:
    value, index = _first(given), given[1]
    axis = _integer(node, "axis", 0)
    if index is None or index.dtype not in (np.int64, np.int32) or not -value.ndim <= axis < value.ndim:
        raise ValueError("no positions")
    return np.take(value, index, axis)


def _reshape(node: Node, given: Given, opset: int) -> Array:
    value, target = _first(given), given[1]
    if target is None or target.dtype != np.int64 or target.ndim != 1:
        raise ValueError("a shape that is no list of int64")
    sizes = [int(v) for v in target]
    if not _integer(node, "allowzero", 0):
        sizes = [value.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    elif 0 in sizes and -1 in sizes:
        raise ValueError("0 beside -1")
    if any(size < -1 for size in sizes):
        raise ValueError(f"the shape {sizes}")
    return value.reshape(sizes)


def _transpose(node: Node, given: Given, opset: int) -> Array:
    perm = node.attributes.get("perm")
    return np.transpose(_first(given), tuple(int(v) for v in perm) if isinstance(perm, tuple) else None)


def _squeeze(node: Node, given: Given, opset: int) -> Array:
    axes = axes_of(node, given, 1)
    return np.squeeze(_first(given), None if axes is None else tuple(axes))


def _unsqueeze(node: Node, given: Given, opset: int) -> Array:
    axes = axes_of(node, given, 1)
    if not axes:
        raise ValueError("no axes")
    return np.expand_dims(_first(given), tuple(axes))


def _flatten(node: Node, given: Given, opset: int) -> Array:
    value, axis = _first(given), _integer(node, "axis", 1)
    if not -value.ndim <= axis <= value.ndim:
        raise ValueError(f"axis {axis}")
    axis = axis + value.ndim if axis < 0 else axis
    return value.reshape(math.prod(value.shape[:axis]), -1 if value.size else 0)


def _concat(node: Node, given: Given, opset: int) -> Array:
    if "axis" not in node.attributes:
        raise ValueError("no axis")
    return np.concatenate([value for value in given if value is not None], _integer(node, "axis", 0))


def cuts(node: Node, given: Given, shape: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Of a Slice of a tensor of this shape: (axis, start, end, step) for each axis it names, within the tensor."""
    bounds = [_whole_list(node, given, place, name) for place, name in ((1, "starts"), (2, "ends"))]
    starts, ends = bounds
    if starts is None or ends is None:
        raise refuse(node, "starts and ends", "none")
    axes = _whole_list(node, given, 3, "axes") or list(range(len(starts)))
    steps = _whole_list(node, given, 4, "steps") or [1] * len(starts)
    rank = len(shape)
    sound = len(starts) == len(ends) == len(axes) == len(steps) and all(-rank <= a < rank for a in axes)
    axes = [a % rank for a in axes] if sound else axes
    if not sound or len(set(axes)) != len(axes) or any(step == 0 for step in steps):
        raise refuse(node, "starts, ends, axes and steps of one length", f"{starts} {ends} {axes} {steps}")
    return [
        (axis, *slice(start, end, step).indices(shape[axis]))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    ]


def _whole_list(node: Node, given: Given, index: int, name: str) -> list[int] | None:
    named = node.attributes.get(name)
    if isinstance(named, tuple):
        return [int(v) for v in named]
    value = given[index] if index < len(given) else None
    if value is None:
        return None
    if value.dtype not in (np.int64, np.int32) or value.ndim > 1:
        raise refuse(node, f"{name} as whole numbers", f"{value.dtype} of shape {value.shape}")
    return [int(v) for v in value.reshape(-1)]


def _slice(node: Node, given: Given, opset: int) -> Array:
    value = _first(given)
    for axis, start, end, step in cuts(node, given, value.shape):
        value = np.take(value, range(start, end, step), axis)
    return value


def parts(node: Node, given: Given, size: int) -> list[int]:
    """The sizes that a Split cuts an axis of `size` into."""
    named = _whole_list(node, given, 1, "split")
    count = _integer(node, "num_outputs", len(node.outputs))
    if named is None:
        each = math.ceil(size / count) if count else 0
        named = [max(0, min(each, size - i * each)) for i in range(count)]
        if size % count and "num_outputs" not in node.attributes:
            raise refuse(node, "equal parts", f"{count} parts of {size}")
    if sum(named) != size or len(named) != len(node.outputs) or any(part < 1 for part in named):
        raise refuse(node, f"parts of an axis of {size}, one for each output", f"{named}")
    return named


def _split(node: Node, given: Given, opset: int) -> list[Array]:
    value, axis = _first(given), _integer(node, "axis", 0)
    ends = np.cumsum(parts(node, given, value.shape[axis]))[:-1]
    return np.split(value, ends, axis)


def _expand(node: Node, given: Given, opset: int) -> Array:
    value, target = _first(given), given[1]
    if target is None or target.dtype != np.int64 or target.ndim != 1:
        raise ValueError("a shape that is no list of int64")
    shape = np.broadcast_shapes(value.shape, _moderate(target))
    return np.broadcast_to(value, _moderate(np.array(shape, np.int64))).copy()


def _moderate(shape: Array) -> tuple[int, ...]:
    sizes = tuple(int(v) for v in shape)
    if any(size < 0 for size in sizes) or math.prod(sizes) > MAX_FOLDED:
        raise ValueError(f"the shape {sizes}")
    return sizes


def _constant_of_shape(node: Node, given: Given, opset: int) -> Array:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise ValueError("a value that is not one number")
    return np.full(_moderate(_first(given)), value.reshape(-1)[0], value.dtype)


def _range(node: Node, given: Given, opset: int) -> Array:
    start, limit, delta = (value.reshape(-1)[0] for value in given if value is not None and value.size == 1)
    real = start.dtype == np.float32
    if real and any(not abs(v) <= EXACT_IN_FLOAT32 or v != int(v) for v in (start, limit, delta)):
        raise ValueError("fractions, whose count runtimes round")
    if delta == 0 or abs((int(limit) - int(start)) // int(delta)) > MAX_WHOLE:
        raise ValueError(f"{start} to {limit} by {delta}")
    made = np.array(range(int(start), int(limit), int(delta)), object)
    return made.astype(np.float32) if real else exact(node, made, start.dtype)


def _where(node: Node, given: Given, opset: int) -> Array:
    condition, one, two = given
    if condition is None or one is None or two is None or condition.dtype != np.bool_ or one.dtype != two.dtype:
        raise ValueError("no truth values, or two types")
    return np.asarray(np.where(condition, one, two))


def _tile(node: Node, given: Given, opset: int) -> Array:
    value, repeats = _first(given), given[1]
    if repeats is None or repeats.size != value.ndim or value.size * math.prod(map(int, repeats)) > MAX_FOLDED:
        raise ValueError("repeats that do not fit")
    return np.tile(value, _moderate(repeats))


def _reduced(
    whole: Callable[[Sequence[int]], int] | None, real: Callable[..., Array]
) -> Callable[[Node, Given, int], Array]:
    def compute(node: Node, given: Given, opset: int) -> Array:
        value, axes = _first(given), axes_of(node, given, 1)
        keep = bool(_integer(node, "keepdims", 1))
        if not axes and _integer(node, "noop_with_empty_axes", 0):
            return value
        over = tuple(axes) if axes else tuple(range(value.ndim))
        if value.dtype == np.float32:
            return np.asarray(real(value, axis=over, keepdims=keep), np.float32)
        if whole is None or value.dtype == np.bool_ or value.size > MAX_WHOLE:
            raise ValueError(str(value.dtype))
        over = tuple(a % value.ndim for a in over)
        moved = np.moveaxis(value, over, range(-len(over), 0)) if over else value
        rest = moved.shape[: value.ndim - len(over)]
        rows = moved.reshape(-1, math.prod(moved.shape[value.ndim - len(over) :]))
        made = np.array([whole([int(v) for v in row]) for row in rows], object).reshape(rest)
        return exact(node, np.expand_dims(made, over) if keep and over else made, value.dtype)

    return compute


def _matmul(node: Node, given: Given, opset: int) -> Array:
    one, two = _first(given), given[1]
    if two is None or one.dtype != np.float32 or two.dtype != np.float32:
        raise ValueError("no float32")
    return np.asarray(np.matmul(one, two))


def _clip(node: Node, given: Given, opset: int) -> Array:
    value, made = _first(given), _first(given)
    for index, name, choose in ((1, "min", np.maximum), (2, "max", np.minimum)):
        held = given[index] if index < len(given) else None
        named = node.attributes.get(name)
        bound = np.array(named, np.float32) if isinstance(named, float) else held
        if bound is not None and (bound.size != 1 or bound.dtype != value.dtype):
            raise ValueError(f"a bound of type {bound.dtype}")
        made = made if bound is None else choose(made, bound.reshape(()))
    return made


def _batch_norm(node: Node, given: Given, opset: int) -> Array:
    # of weights, which some networks normalise whenever they run: by their own statistics, as training has it
    value, (scale, bias, mean, variance) = _first(given), (_float(held) for held in given[1:])
    if value.dtype != np.float32 or value.ndim < 2 or any(v.shape != value.shape[1:2] for v in (scale, bias)):
        raise ValueError("no channels")
    if _integer(node, "training_mode", 0):
        over = tuple(axis for axis in range(value.ndim) if axis != 1)
        mean, variance = value.mean(over), value.var(over)
    epsilon = node.attributes.get("epsilon", 1e-5)
    shape = [1, -1, *[1] * (value.ndim - 2)]
    factor = scale / np.sqrt(np.add(variance, epsilon, dtype=np.float32))
    made = (value - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    return np.asarray(made, np.float32)


def _float(value: Array | None) -> Array:
    if value is None or value.dtype != np.float32:
        raise ValueError("no float32")
    return value


def _cumulated(node: Node, given: Given, opset: int) -> Array:
    value, axis = _first(given), given[1]
    if axis is None or axis.size != 1 or value.dtype == np.bool_:
        raise ValueError("no axis")
    along = int(axis.reshape(-1)[0])
    value = np.flip(value, along) if _integer(node, "reverse", 0) else value
    total = np.cumsum(value, along, object if value.dtype != np.float32 else np.float32)
    total = total - value if _integer(node, "exclusive", 0) else total
    total = np.flip(total, along) if _integer(node, "reverse", 0) else total
    return total if value.dtype == np.float32 else exact(node, total, value.dtype)


FOLDS: dict[str, Callable[[Node, Given, int], Array | list[Array]]] = {
    "Add": _pairs(lambda a, b: a + b, np.add),
    "Sub": _pairs(lambda a, b: a - b, np.subtract),
    "Mul": _pairs(lambda a, b: a * b, np.multiply),
    "Div": _divided,
    "Max": _pairs(max, np.maximum),
    "Min": _pairs(min, np.minimum),
    "Sum": _pairs(None, np.add),
    "Pow": _pairs(None, np.power),
    "Mod": _mod,
    "Neg": _unary(lambda a: -a, np.negative),
    "Abs": _unary(abs, np.abs),
    "Floor": _unary(None, np.floor),
    "Ceil": _unary(None, np.ceil),
    "Round": _unary(None, np.round),
    "Sign": _unary(lambda a: (a > 0) - (a < 0), np.sign),
    "CumSum": _cumulated,
    "Clip": _clip,
    "BatchNormalization": _batch_norm,
    "Equal": _compared(np.equal),
    "Less": _compared(np.less),
    "LessOrEqual": _compared(np.less_equal),
    "Greater": _compared(np.greater),
    "GreaterOrEqual": _compared(np.greater_equal),
    "Not": _logical(np.logical_not),
    "And": _logical(np.logical_and),
    "Or": _logical(np.logical_or),
    "Xor": _logical(np.logical_xor),
    "Cast": _cast,
    "Where": _where,
    "Identity": lambda node, given, opset: _first(given),
    "Shape": lambda node, given, opset: shape_of(node, _first(given).shape),
    "Size": lambda node, given, opset: np.array(_first(given).size, np.int64),
    "Gather": _gather,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Tile": _tile,
    "MatMul": _matmul,
    "ReduceSum": _reduced(sum, np.sum),
    "ReduceProd": _reduced(math.prod, np.prod),
    "ReduceMax": _reduced(max, np.max),
    "ReduceMin": _reduced(min, np.min),
    "ReduceMean": _reduced(None, np.mean),
    "ReduceL2": _reduced(None, lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims))),
}
ONE_TYPE = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Pow", "Mod", "MatMul", "Concat", "Range"} | {
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"
}  # fmt: skip


def shape_of(node: Node, shape: Sequence[int]) -> Array:
    """What a Shape node gives for a tensor of this shape."""
    end = node.attributes.get("end")
    part = slice(_integer(node, "start", 0), end if isinstance(end, int) else None)
    return np.array(tuple(shape)[part], np.int64)

"""How each operator is written in opset 21: defaults spelled out, padding and axes settled, what does nothing left out.

What is disputed between runtimes is refused here: flags that are neither 0 nor 1, outputs that only training has,
padding that some runtimes count from the dilated kernel and some do not, bounds that cross. Operators that need more
than a few lines stand beside: `windows`, `shapes`, `parts`, `norms`, and `composed` of newer opsets.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vetgate.formats.onnx.folding.constants import refuse
from vetgate.formats.onnx.nodes import Node, Value, check_factors
from vetgate.formats.onnx.rewriting import composed, norms, parts, shapes, windows
from vetgate.formats.onnx.rewriting.walk import Rewrite, Walk

# nothing happens in these, or what happens is undone by reading everything as float32
WIDE = (1, 10, 11, 16)
FLAGS = (
    "transA", "transB", "keepdims", "noop_with_empty_axes", "ceil_mode", "count_include_pad", "storage_order",
    "allowzero", "training_mode", "fmod", "saturate", "exclude_outside", "antialias", "upper", "exclusive", "reverse",
    "is_causal",
)  # fmt: skip
# what a node means that says nothing else
DEFAULTS: dict[str, dict[str, Value]] = {
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "Celu": {"alpha": 1.0},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "Gelu": {"approximate": "none"},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "DepthToSpace": {"mode": "DCR"},
    "Trilu": {"upper": 1},
    "GatherND": {"batch_dims": 0},
}
# their constants hold a value for each axis of the image from the right, so one row stands for the whole batch
COUNTED = ("Trilu", "Tile", "GatherND")
BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Where", "MatMul", "Equal", "Less", "Greater")
Rule = Callable[[Rewrite], str]


def rewrite(walk: Walk, node: Node, opset: int, *, folded: bool) -> None:
    """Check a node, and unless it is folded write it into the walk; raises NotUnderstood."""
    for flag in FLAGS:
        if node.attributes.get(flag, 0) not in (0, 1):
            raise refuse(node, f"{flag} 0 or 1", str(node.attributes[flag]))
    check_factors(node)
    if folded:
        return
    given = Rewrite(walk, node, opset)
    if node.op in ("Split",):
        parts.split(given)
        return
    name = RULES.get(node.op, _plain)(given)
    if name != node.outputs[0]:
        walk.aliases[node.outputs[0]] = walk.root(name)


def _power(r: Rewrite) -> str:
    exponent = r.constant(1)
    size = np.abs(np.zeros(0) if exponent is None else exponent)
    if bool(((size < 0.01) | (size > 100)).any()):
        raise r.refuse("exponents of 0.01 to 100", "others, which make one number, or a step, of what is near one")
    return _plain(r)


def _plain(r: Rewrite) -> str:
    attributes = {**DEFAULTS.get(r.node.op, {}), **r.node.attributes}
    rows = r.node.op in BROADCAST
    inputs = [
        (r.name(i) if rows or r.walk.root(name) not in r.walk.numbers else _refused(r, i)) if name else ""
        for i, name in enumerate(r.node.inputs)
    ]
    for index, name in enumerate(inputs):
        # a mask is of truth values, a count of whole numbers
        kind = np.bool_ if (r.node.op, index) == ("Where", 0) else np.int64 if r.node.op in COUNTED else np.float32
        if name in r.walk.constants and r.walk.constants[name].dtype != kind:
            raise r.refuse(
                f"{np.dtype(kind)} beside what the image gives, as input {index}", str(r.walk.constants[name].dtype)
            )
    return r.write(r.node.op, inputs, attributes, output=r.result)


def _gemm(r: Rewrite) -> str:
    if r.rank != 2:
        raise r.refuse("a row for each image", f"values of {r.rank} axes")
    return _plain(r)


def _refused(r: Rewrite, index: int) -> str:
    raise r.refuse("no number that depends on the batch size", f"one as input {index}")


def _same(r: Rewrite) -> str:
    return r.name(0)


def _dropout(r: Rewrite) -> str:
    training = r.constant(2)
    if training is not None and bool(training.any()):
        raise r.refuse("inference mode", "training_mode true")
    return r.name(0)


def _cast(r: Rewrite) -> str:
    if r.integer("to", 0) not in WIDE:
        raise r.refuse("no rounding of what the image gives", f"a cast to ONNX data type {r.integer('to', 0)}")
    return r.name(0)


def _chain(op: str) -> Rule:
    def write(r: Rewrite) -> str:
        names = [r.name(i) for i in range(len(r.node.inputs))]
        if any(not name for name in r.node.inputs):
            raise r.refuse("every input", "one left out")
        kinds = {str(r.walk.constants[name].dtype) for name in names if name in r.walk.constants}
        if kinds - {"float32"}:
            raise r.refuse("float32 beside what the image gives", " and ".join(sorted(kinds)))
        # constants last: two of them in a row would be an operator on constants alone
        names.sort(key=lambda name: name in r.walk.constants)
        result = names[0]
        for place, name in enumerate(names[1:], start=2):
            result = r.write(op, [result, name], output=r.result if place == len(names) else "")
        return result

    return write


def _softmax(r: Rewrite) -> str:
    given = r.shapes()
    if r.opset >= 13:
        return r.write(r.node.op, [r.name(0)], {"axis": r.axis(-1)}, output=r.result)
    axis = r.axis(1)
    if any(r.grows(place) for place in range(axis, r.rank)):
        raise r.refuse("to treat each image of a batch alone", "a softmax over all of them")
    rest = math.prod(given[0][axis:])
    if rest == given[0][axis]:
        return r.write(r.node.op, [r.name(0)], {"axis": axis}, output=r.result)
    # before opset 13 it went over all axes from this one on
    flat = shapes.growing(r, [(*shape[:axis], rest) for shape in given])
    made = r.write(r.node.op, [r.write("Reshape", [r.name(0), flat])], {"axis": axis})
    return r.write("Reshape", [made, shapes.growing(r, list(given))], output=r.result)


def _clip(r: Rewrite) -> str:
    # before opset 11 the bounds were attributes
    bounds: list[np.ndarray | None] = []
    for index, name in ((1, "min"), (2, "max")):
        named = r.node.attributes.get(name)
        value = np.array(named, np.float32) if isinstance(named, float) else r.constant(index)
        if value is not None and (value.size != 1 or value.dtype != np.float32 or bool(np.isnan(value).any())):
            raise r.refuse(f"one float32 number as {name}", f"{value.dtype} of shape {value.shape}")
        bounds.append(None if value is None else value.reshape(()))
    low, high = bounds
    low = None if low is None or low <= np.finfo(np.float32).min else low
    high = None if high is None or high >= np.finfo(np.float32).max else high
    if low is not None and high is not None and low > high:
        raise r.refuse("a lower bound below the upper one", f"{low} and {high}, which runtimes take in two ways")
    if low is None and high is None:
        return r.name(0)
    names = [r.hold(bound) if bound is not None else "" for bound in (low, high)]
    return r.write("Clip", [r.name(0), *names], output=r.result)


def _reduce(r: Rewrite) -> str:
    axes, keep = shapes.axes_of(r, r.rank), r.integer("keepdims", 1)
    if not axes:
        if r.integer("noop_with_empty_axes", 0) and (r.given(1) or r.integers("axes") is not None or r.opset >= 18):
            return r.name(0)
        raise r.refuse("axes to reduce", "none, which mixes the images of a batch")
    return r.write(r.node.op, [r.name(0), shapes.held_axes(r, axes)], {"keepdims": keep}, output=r.result)


def _prelu(r: Rewrite) -> str:
    return r.write("PRelu", [r.name(0), r.name(1)], output=r.result)


RULES: dict[str, Rule] = {
    "Attention": composed.attention,
    "RMSNormalization": composed.rms_norm,
    "Swish": composed.swish,
    "Gemm": _gemm,
    "Identity": _same,
    "Dropout": _dropout,
    "Cast": _cast,
    **{name: _chain(name) for name in ("Max", "Min")},
    "Sum": _chain("Add"),
    "BatchNormalization": norms.batch_norm,
    "LayerNormalization": norms.layer_norm,
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), norms.other_norm),
    "Conv": windows.conv,
    "ConvTranspose": windows.conv,
    "Resize": windows.resize,
    "Pow": _power,
    "LRN": norms.lrn,
    "MaxPool": windows.pool,
    "AveragePool": windows.pool,
    **{name: _softmax for name in ("Softmax", "LogSoftmax")},
    "Clip": _clip,
    **{f"Reduce{name}": _reduce for name in ("Mean", "Max", "Sum", "Min", "Prod", "L1", "L2")},
    **{f"Reduce{name}": _reduce for name in ("SumSquare", "LogSum", "LogSumExp")},
    "Squeeze": shapes.squeeze,
    "Unsqueeze": shapes.unsqueeze,
    "Reshape": shapes.reshape,
    "Flatten": shapes.flatten,
    "Transpose": shapes.transpose,
    "Concat": parts.concat,
    "Pad": parts.pad,
    "Gather": parts.gather,
    "Slice": parts.take,
    "Expand": shapes.expand,
    "PRelu": _prelu,
}

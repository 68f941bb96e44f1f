"""Random small ONNX graphs of every operator that is read, and random changes of them, for `benchmarks.onnx_fuzz`.

A graph takes images (N, 3, 6, 5) and gives four logits. It begins with the operator that it is for, in a random opset,
with attributes drawn from what the operator may carry; others may follow; a linear layer sees every value of the last.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vetgate.formats.onnx.table import OPERATORS, OPSETS

SHAPE, CLASSES = (3, 6, 5), 4
# onnxruntime of the lock knows no later one
NEWEST = 24
Array = np.ndarray
Dice = random.Random


class Draft:
    """A graph while operators are appended; `value` is its last value, `shape` that one's shape, 7 being the batch."""

    def __init__(self, dice: Dice, opset: int) -> None:
        self.dice, self.opset = dice, opset
        self.nodes: list[NodeProto] = []
        self.held: dict[str, Array] = {}
        self.value, self.shape = "x", [7, *SHAPE]
        self.count = 0

    def name(self) -> str:
        """A new name."""
        self.count += 1
        return f"v{self.count}"

    def hold(self, value: Array) -> str:
        """A new constant; sometimes in a Constant node."""
        name = self.name()
        if self.dice.random() < 0.1:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        else:
            self.held[name] = value
        return name

    def noise(self, *shape: int) -> Array:
        """Normal numbers."""
        return np.random.default_rng(self.dice.getrandbits(32)).standard_normal(shape).astype(np.float32)

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node with one output."""
        name = self.name()
        self.nodes.append(helper.make_node(op, inputs, [name], f"{op}{self.count}", **attributes))
        return name

    def model(self, output: str, nodes: list[NodeProto] | None = None, out: list[Any] | None = None) -> onnx.ModelProto:
        """The graph up to `output`."""
        image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])
        logits = helper.make_tensor_value_info(output, TensorProto.FLOAT, out)
        weights = [numpy_helper.from_array(value, name) for name, value in self.held.items()]
        graph = helper.make_graph(nodes or self.nodes, "g", [image], [logits], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def measure(self, value: str) -> bool:
        """Make `value` the last one; whether its shape is known."""
        model = self.model(value)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # what the inference makes of a random graph is not the subject
            return False
        kind = inferred.graph.output[0].type.tensor_type
        dims = [d.dim_value for d in kind.shape.dim]
        if kind.elem_type != TensorProto.FLOAT or not kind.HasField("shape") or not dims or min(dims) < 1:
            return False
        self.value, self.shape = value, dims
        return True


def _window(d: Draft, *, sides: int = 2, pooling: bool = False) -> tuple[list[int], dict[str, Any]]:
    kernel = [d.dice.choice([1, 2, 2, 3, 3]) for _ in range(sides)]
    given: dict[str, Any] = {}
    if d.dice.random() < 0.6:
        given["strides"] = [d.dice.choice([1, 2, 3]) for _ in range(sides)]
    if d.dice.random() < 0.25:
        given["dilations"] = [d.dice.choice([1, 1, 2]) for _ in range(sides)]
    match d.dice.randrange(4):
        case 0:
            given["auto_pad"] = d.dice.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
        case 1:
            most = [k - 1 if pooling else k for k in kernel]
            given["pads"] = [d.dice.randint(0, m) for m in (*most, *most)]
    return kernel, given


def _conv(d: Draft) -> str:
    kernel, given = _window(d)
    channels = d.shape[1]
    group = d.dice.choice([1, 1, channels])
    out = group * d.dice.choice([1, 2])
    inputs = [d.value, d.hold(d.noise(out, channels // group, *kernel))]
    if d.dice.random() < 0.6:
        inputs.append(d.hold(d.noise(out)))
    if d.dice.random() < 0.5:
        given["kernel_shape"] = kernel
    return d.add("Conv", inputs, **given, **({"group": group} if group > 1 or d.dice.random() < 0.3 else {}))


def _transposed(d: Draft) -> str:
    kernel, given = _window(d)
    given.pop("auto_pad", None)
    return d.add("ConvTranspose", [d.value, d.hold(d.noise(d.shape[1], 2, *kernel))], **given)


def _pool(op: str) -> Callable[[Draft], str]:
    def make(d: Draft) -> str:
        kernel, given = _window(d, pooling=True)
        if op == "AveragePool":
            given.pop("dilations", None)
            if d.dice.random() < 0.5:
                given["count_include_pad"] = d.dice.randint(0, 1)
        if d.dice.random() < 0.5:
            given["ceil_mode"] = d.dice.randint(0, 1)
        return d.add(op, [d.value], kernel_shape=kernel, **given)

    return make


def _linear(op: str) -> Callable[[Draft], str]:
    def make(d: Draft) -> str:
        width = d.shape[-1]
        if op == "MatMul":
            return d.add(op, [d.value, d.hold(d.noise(width, 4))])
        flat = d.add("Flatten", [d.value])
        size = int(np.prod(d.shape[1:]))
        turned = d.dice.randint(0, 1)
        inputs = [flat, d.hold(d.noise(*((4, size) if turned else (size, 4))))]
        if d.dice.random() < 0.6:
            inputs.append(d.hold(d.noise(*d.dice.choice([(4,), (1, 4), (1,), ()]))))
        factors = {"alpha": d.dice.choice([1.0, 0.5])} if d.dice.random() < 0.3 else {}
        return d.add("Gemm", inputs, transB=turned, **factors)

    return make


def _norm(op: str) -> Callable[[Draft], str]:
    def make(d: Draft) -> str:
        channels = d.shape[1]
        held = [d.hold(d.noise(channels)) for _ in range(2)]
        epsilon = {"epsilon": d.dice.choice([1e-5, 1e-3])} if d.dice.random() < 0.6 else {}
        match op:
            case "BatchNormalization":
                held += [d.hold(d.noise(channels)), d.hold(np.abs(d.noise(channels)) + np.float32(0.1))]
                return d.add(op, [d.value, *held], **epsilon)
            case "GroupNormalization":
                return d.add(op, [d.value, *held], num_groups=d.dice.choice([1, channels]), **epsilon)
            case "LayerNormalization":
                axis = d.dice.randrange(1, len(d.shape))
                held = [d.hold(d.noise(*d.shape[axis:])) for _ in range(d.dice.choice([1, 2]))]
                return d.add(op, [d.value, *held], axis=axis, **epsilon)
        return d.add(op, [d.value, *held], **epsilon)

    return make


def _constant(d: Draft, *, positive: bool = False) -> str:
    shape = d.dice.choice([(), (1,), (d.shape[1], *[1] * (len(d.shape) - 2)), tuple(d.shape[1:]), (1, *d.shape[1:])])
    value = d.noise(*shape)
    return d.hold(np.abs(value) + np.float32(0.2) if positive else value)


def _binary(op: str) -> Callable[[Draft], str]:
    def make(d: Draft) -> str:
        if op == "Pow":
            return d.add(op, [d.add("Abs", [d.value]), d.hold(np.float32(d.dice.choice([2, 3, 0.5])))])
        other = d.add("Sigmoid", [d.value]) if d.dice.random() < 0.3 else _constant(d, positive=op == "Div")
        pair = [d.value, other]
        return d.add(op, pair if op == "Div" or d.dice.random() < 0.7 else pair[::-1])

    return make


def _unary(op: str, **choices: list[Any]) -> Callable[[Draft], str]:
    def make(d: Draft) -> str:
        given = {name: d.dice.choice(values) for name, values in choices.items() if d.dice.random() < 0.7}
        value = d.value
        if op in ("Sqrt", "Log", "Reciprocal"):
            # where these are defined
            value = d.add("Add", [d.add("Abs", [value]), d.hold(np.float32(0.1))])
        elif op == "Exp":
            value = d.add("Clip", [value, d.hold(np.float32(-3)), d.hold(np.float32(3))])
        return d.add(op, [value], **given)

    return make


def _axes(d: Draft, *, first: int = 1) -> list[int]:
    rank = len(d.shape)
    chosen = d.dice.sample(range(first, rank), d.dice.randint(1, rank - first))
    return [axis - rank if d.dice.random() < 0.3 else axis for axis in chosen]


def _with_axes(d: Draft, op: str, since: int, axes: list[int], value: str, **given: Any) -> str:
    if d.opset < since:
        return d.add(op, [value], axes=axes, **given)
    return d.add(op, [value, d.hold(np.array(axes, np.int64))], **given)


def _reduced(op: str) -> Callable[[Draft], str]:
    def make(d: Draft) -> str:
        given = {"keepdims": d.dice.randint(0, 1)} if d.dice.random() < 0.7 else {}
        value = d.value if op != "ReduceLogSum" else d.add("Add", [d.add("Abs", [d.value]), d.hold(np.float32(0.1))])
        return _with_axes(d, op, 13 if op == "ReduceSum" else 18, _axes(d), value, **given)

    return make


def _squeezed(d: Draft) -> str:
    rank = len(d.shape)
    wide = _with_axes(d, "Unsqueeze", 13, [d.dice.randint(1, rank)], d.value)
    return wide if d.dice.random() < 0.5 or not d.measure(wide) else _with_axes(
        d, "Squeeze", 13, [d.shape.index(1, 1)], wide
    )  # fmt: skip


def _reshaped(d: Draft) -> str:
    rest = d.shape[1:]
    forms = [[0, -1], [-1, int(np.prod(rest))], [0, 0, -1], [-1, *reversed(rest)], [0, 1, *rest], [7, -1]]
    return d.add("Reshape", [d.value, d.hold(np.array(d.dice.choice(forms[:5]), np.int64))])


def _by_shape(d: Draft) -> str:
    # as exporters write x.view(x.size(0), -1) and the like
    shape = d.add("Shape", [d.value])
    batch = d.add("Gather", [shape, d.hold(np.array(0, np.int64))], axis=0)
    size = _with_axes(d, "Unsqueeze", 13, [0], batch)
    rest = d.hold(np.array(d.dice.choice([[-1], [1, -1], d.shape[1:]]), np.int64))
    return d.add("Reshape", [d.value, d.add("Concat", [size, rest], axis=0)])


def _counted(d: Draft) -> str:
    # arithmetic on the sides of an image, as a factor or as the end of a cut
    side = d.add("Gather", [d.add("Shape", [d.value]), d.hold(np.array([len(d.shape) - 1], np.int64))], axis=0)
    for _ in range(d.dice.randint(1, 3)):
        other = d.hold(np.array([d.dice.choice([1, 2, 3, -1, -2, 7, 0])], np.int64))
        op = d.dice.choice(["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min"])
        side = d.add(op, [side, other] if d.dice.random() < 0.7 else [other, side])
    if d.dice.random() < 0.5:
        return d.add("Mul", [d.value, d.add("Cast", [side], to=1)])
    ends = [d.hold(np.array([value], np.int64)) for value in (0, len(d.shape) - 1)]
    return d.add("Slice", [d.value, ends[0], side, ends[1]])


def _expanded(d: Draft) -> str:
    shape = d.add("Shape", [d.value])
    rows = d.hold(d.noise(1, *d.shape[1:]))
    if d.dice.random() < 0.5:
        return d.add("Add", [d.value, d.add("Expand", [rows, shape])])
    filled = d.add("ConstantOfShape", [shape], value=numpy_helper.from_array(np.array([0.5], np.float32)))
    return d.add("Concat", [filled, d.value], axis=1)


def _masked(d: Draft) -> str:
    side = d.shape[-1]
    numbers = d.add("Range", [d.hold(np.array(v, np.int64)) for v in (0, side, 1)])
    kinds = ["Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"]
    mask = d.add(d.dice.choice(kinds if d.opset >= 12 else kinds[:3]), [numbers, d.hold(np.array(2, np.int64))])
    if d.dice.random() < 0.3:
        mask = d.add("Not", [mask])
    return d.add("Where", [mask, d.value, d.hold(np.float32(d.dice.choice([0.0, -1.0])))])


def _cut(d: Draft) -> str:
    axis = d.dice.randrange(1, len(d.shape))
    size = d.shape[axis]
    match d.dice.randrange(3):
        case 0:
            first = d.dice.randint(-size, size - 1)
            values = [first, d.dice.choice([2**60, size, first + 2, -1]), axis, d.dice.choice([1, 1, 2, -1])]
            return d.add("Slice", [d.value, *(d.hold(np.array([v], np.int64)) for v in values)])
        case 1:
            index = [d.dice.randrange(-size, size) for _ in range(d.dice.randint(1, 3))]
            held = np.array(index if d.dice.random() < 0.7 else index[0], np.int64)
            return d.add("Gather", [d.value, d.hold(held)], axis=axis)
        case _:
            return d.add("Concat", [d.value, d.add("Neg", [d.value])], axis=d.dice.choice([axis, axis - len(d.shape)]))


def _split(d: Draft) -> str:
    axis = len(d.shape) - 1
    size = d.shape[axis]
    first = d.dice.randint(1, max(1, size - 1))
    names, sizes = [d.name(), d.name()], [first, size - first]
    if min(sizes) < 1:
        return d.add("Neg", [d.value])
    given: dict[str, Any] = {"axis": axis}
    inputs = [d.value]
    if d.opset < 13:
        given["split"] = sizes
    else:
        inputs.append(d.hold(np.array(sizes, np.int64)))
    d.nodes.append(helper.make_node("Split", inputs, names, **given))
    return d.add("Concat", names[::-1], axis=axis)


def _pad(d: Draft) -> str:
    rank = len(d.shape)
    widths = [0] * (2 * rank)
    mode = d.dice.choice(["constant", "reflect", "edge"])
    for axis in range(rank - 2 if rank > 3 else rank - 1, rank):
        widths[axis], widths[rank + axis] = (d.dice.randint(-1 if mode == "constant" else 0, 2) for _ in range(2))
    if d.opset < 11:
        return d.add("Pad", [d.value], pads=widths, mode=mode)
    inputs = [d.value, d.hold(np.array(widths, np.int64))]
    if mode == "constant" and d.dice.random() < 0.5:
        inputs.append(d.hold(np.float32(d.dice.choice([0.0, 0.5]))))
    return d.add("Pad", inputs, mode=mode)


def _turned(d: Draft) -> str:
    order = [0, *d.dice.sample(range(1, len(d.shape)), len(d.shape) - 1)]
    return d.add("Transpose", [d.value], perm=order)


def _resized(d: Draft) -> str:
    places = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    given = {"mode": d.dice.choice(["nearest", "linear", "cubic"])}
    given["coordinate_transformation_mode"] = d.dice.choice(places)
    if given["mode"] == "nearest":
        given["nearest_mode"] = d.dice.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
    scales = [1.0, 1.0, *(d.dice.choice([0.5, 1.0, 1.5, 2.0]) for _ in range(2))]
    if d.opset < 11:
        return d.add("Resize", [d.value, d.hold(np.array(scales, np.float32))], mode="nearest")
    region = d.hold(np.zeros(0, np.float32))
    return d.add("Resize", [d.value, region, d.hold(np.array(scales, np.float32))], **given)


def _clip(d: Draft) -> str:
    low, high = sorted(d.dice.uniform(-1, 1) for _ in range(2))
    if d.opset < 11:
        return d.add("Clip", [d.value], min=low, max=high)
    inputs = [d.value, d.hold(np.float32(low)), d.hold(np.float32(high))]
    return d.add("Clip", inputs[: d.dice.choice([1, 2, 3, 3])])


def _dropout(d: Draft) -> str:
    return d.add("Dropout", [d.value])


def _chained(op: str) -> Callable[[Draft], str]:
    return lambda d: d.add(op, [d.value, *(_constant(d) for _ in range(d.dice.randint(0, 2)))])


def _einsum(d: Draft) -> str:
    rank = len(d.shape)
    letters = "bcdefg"[:rank]
    return d.add(
        "Einsum", [d.value, d.hold(d.noise(d.shape[-1], 3))], equation=f"{letters},{letters[-1]}z->{letters[:-1]}z"
    )


def _attention(d: Draft) -> str:
    given = {"is_causal": 1} if d.dice.random() < 0.3 else {}
    if len(d.shape) == 3:
        return d.add("Attention", [d.value] * 3, q_num_heads=1, kv_num_heads=1, **given)
    inputs = [d.value] * 3
    if d.dice.random() < 0.3:
        inputs.append(d.hold(d.noise(d.shape[-2], d.shape[-2])))
    return d.add("Attention", inputs, **given)


def _blocks(op: str) -> Callable[[Draft], str]:
    def make(d: Draft) -> str:
        many = d.add("Concat", [d.value] * 4, axis=1)
        wide = d.add("DepthToSpace", [many], blocksize=2, **({"mode": d.dice.choice(["DCR", "CRD"])}))
        return wide if op == "DepthToSpace" else d.add("SpaceToDepth", [wide], blocksize=2)

    return make


IMAGES = (
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN", "Resize"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "DepthToSpace", "SpaceToDepth", "Attention"),
)
ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish", "Mish", "Abs", "Neg", "Exp", "Log")
SEEDS: dict[str, Callable[[Draft], str]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "MaxPool": _pool("MaxPool"),
    "AveragePool": _pool("AveragePool"),
    "Gemm": _linear("Gemm"),
    "MatMul": _linear("MatMul"),
    **{f"{name}Normalization": _norm(f"{name}Normalization") for name in ("Batch", "Instance", "Group", "Layer")},
    **{name: _binary(name) for name in ("Add", "Sub", "Mul", "Div", "Pow", "PRelu")},
    **{name: _chained(name) for name in ("Max", "Min", "Sum", "Mean")},
    **{name: _unary(name) for name in (*ACTIVATIONS, "Sqrt", "Erf", "Reciprocal", "Sin", "Cos", "Identity")},
    "GlobalAveragePool": _unary("GlobalAveragePool"),
    "GlobalMaxPool": _unary("GlobalMaxPool"),
    "LeakyRelu": _unary("LeakyRelu", alpha=[0.1, 0.5, -0.2]),
    "Elu": _unary("Elu", alpha=[0.5, 2.0]),
    "Celu": _unary("Celu", alpha=[0.5, 2.0]),
    "Selu": _unary("Selu", alpha=[0.5, 2.0], gamma=[0.5, 1.5]),
    "Gelu": _unary("Gelu", approximate=["none", "tanh"]),
    "HardSigmoid": _unary("HardSigmoid", alpha=[0.1, 0.3], beta=[0.4, 0.6]),
    "LRN": lambda d: d.add("LRN", [d.value], size=3, **({"alpha": 0.1} if d.dice.random() < 0.5 else {})),
    "Softmax": _unary("Softmax", axis=[1, -1, 2]),
    "LogSoftmax": _unary("LogSoftmax", axis=[1, -1, 2]),
    "Flatten": _unary("Flatten", axis=[1, 1, 2, -1]),
    "Swish": _unary("Swish", alpha=[0.5, 2.0]),
    "RMSNormalization": lambda d: d.add("RMSNormalization", [d.value, d.hold(d.noise(d.shape[-1]))], axis=-1),
    "Attention": _attention,
    "Clip": _clip,
    "Dropout": _dropout,
    "Cast": lambda d: d.add("Cast", [d.value], to=1),
    **{f"Reduce{name}": _reduced(f"Reduce{name}") for name in ("Mean", "Max", "Sum", "Min", "Prod", "L1", "L2")},
    **{f"Reduce{name}": _reduced(f"Reduce{name}") for name in ("SumSquare", "LogSum", "LogSumExp")},
    "Reshape": _reshaped,
    "Shape": _by_shape,
    "Size": _counted,
    "Expand": _expanded,
    "Where": _masked,
    "Slice": _cut,
    "Gather": _cut,
    "Concat": _cut,
    "Split": _split,
    "Pad": _pad,
    "Squeeze": _squeezed,
    "Unsqueeze": _squeezed,
    "Transpose": _turned,
    "Resize": _resized,
    "Einsum": _einsum,
    "DepthToSpace": _blocks("DepthToSpace"),
    "SpaceToDepth": _blocks("SpaceToDepth"),
}


def seed_graph(dice: Dice, index: int) -> onnx.ModelProto | None:
    """A valid graph that begins with operator number `index` of SEEDS, or None where the draw gave none."""
    wanted = list(SEEDS)[index % len(SEEDS)]
    since = OPERATORS[wanted].since
    d = Draft(dice, dice.randint(max(since, OPSETS.start), NEWEST))
    for op in (wanted, *dice.choices(list(SEEDS), k=dice.choice([0, 0, 1, 2, 3]))):
        if d.opset < OPERATORS[op].since or (op in IMAGES and len(d.shape) != 4):
            continue
        if not d.measure(SEEDS[op](d)) or len(d.shape) < 2:
            return None
    return _ended(d)


def _ended(d: Draft) -> onnx.ModelProto | None:
    size = int(np.prod(d.shape[1:]))
    if len(d.shape) < 2 or d.shape[0] != 7 or size > 4096:
        return None
    flat = d.add("Flatten", [d.value]) if len(d.shape) > 2 else d.value
    weight = d.hold(d.noise(size, CLASSES) / np.float32(np.sqrt(size)))
    nodes = [*d.nodes, helper.make_node("Gemm", [flat, weight, d.hold(d.noise(CLASSES))], ["y"])]
    return d.model("y", nodes, ["N", CLASSES])

"""Random changes of an ONNX graph that leave it a graph, for `benchmarks.onnx_fuzz`."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks.onnx_seeds import NEWEST
from vetgate.formats.onnx.table import OPERATORS, OPSETS

Dice = random.Random
INTS = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 7, 2**24 + 1, 2**31, 2**63 - 1]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e-5, 3.4e38, -3.4e38, 2.0**25, float("inf"), float("nan")]
TEXTS = ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "constant", "reflect", "edge", "wrap", "tanh", "none", "linear"]
DTYPES = [np.float32, np.int64, np.int32, np.bool_, np.float16, np.float64]


def mutate(model: ModelProto, dice: Dice) -> None:
    """Change the graph in place, once; a change that does not apply leaves it as it is."""
    dice.choice(MUTATIONS)(model, dice)


def damage(data: bytes, dice: Dice) -> bytes:
    """The bytes with some flipped, cut, doubled or dropped."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(out)) if out else 0
        match dice.randrange(5):
            case 0:
                del out[at:]
            case 1:
                out[at : at + 1] = bytes([dice.randrange(256)])
            case 2:
                out[at:at] = out[at : at + dice.randint(1, 40)]
            case 3:
                del out[at : at + dice.randint(1, 8)]
            case _:
                out[at : at + 1] = bytes([(out[at] if out else 0) ^ (1 << dice.randrange(8))])
    return bytes(out)


def _node(model: ModelProto, dice: Dice) -> NodeProto:
    return dice.choice(model.graph.node)


def _attribute(model: ModelProto, dice: Dice) -> None:
    node = _node(model, dice)
    if not node.attribute:
        return _new_attribute(model, dice)
    item = dice.choice(node.attribute)
    match item.type:
        case item.INT:
            item.i = dice.choice(INTS)
        case item.FLOAT:
            item.f = dice.choice(FLOATS)
        case item.STRING:
            item.s = dice.choice(TEXTS).encode()
        case item.INTS if item.ints:
            item.ints[dice.randrange(len(item.ints))] = dice.choice(INTS[2:10])
        case item.INTS:
            item.ints.append(1)
    return None


def _new_attribute(model: ModelProto, dice: Dice) -> None:
    node = _node(model, dice)
    known = OPERATORS[node.op_type].attributes if node.op_type in OPERATORS else {}
    free = [name for name in known if name not in {item.name for item in node.attribute}]
    if not free:
        return
    name = dice.choice(free)
    values: dict[str, object] = {
        "int": dice.choice(INTS[2:8]),
        "float": dice.choice(FLOATS),
        "text": dice.choice(TEXTS),
        "ints": [dice.choice(INTS[3:8]) for _ in range(dice.choice([1, 2, 4]))],
        "floats": [dice.choice(FLOATS)],
    }
    if known[name].kind in values:
        node.attribute.append(helper.make_attribute(name, values[known[name].kind]))


def _no_attribute(model: ModelProto, dice: Dice) -> None:
    node = _node(model, dice)
    if node.attribute:
        del node.attribute[dice.randrange(len(node.attribute))]


def _constant(model: ModelProto, dice: Dice) -> None:
    if not model.graph.initializer:
        return
    tensor = dice.choice(model.graph.initializer)
    value = numpy_helper.to_array(tensor).copy()
    if not value.size:
        return
    at = dice.randrange(value.size)
    if value.dtype == np.float32:
        if dice.random() < 0.5:
            value.reshape(-1)[at] = dice.choice(FLOATS)
        else:
            value = value * np.float32(dice.choice([0, -1, 1e-3, 1e3, 2.0**12]))
    elif value.dtype == np.bool_:
        value = ~value
    else:
        info = np.iinfo(value.dtype)
        value.reshape(-1)[at] = min(max(dice.choice(INTS), info.min), info.max)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def _dtype(model: ModelProto, dice: Dice) -> None:
    if not model.graph.initializer:
        return
    tensor = dice.choice(model.graph.initializer)
    with np.errstate(all="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dice.choice(DTYPES)), tensor.name))


def _shape(model: ModelProto, dice: Dice) -> None:
    if not model.graph.initializer:
        return
    tensor = dice.choice(model.graph.initializer)
    value = numpy_helper.to_array(tensor)
    forms = [value.reshape(-1), value[None], value[..., None], value[:1] if value.ndim else value, value.T.copy()]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(dice.choice(forms)), tensor.name))


def _operator(model: ModelProto, dice: Dice) -> None:
    node = _node(model, dice)
    count = len(node.input)
    alike = [name for name, known in OPERATORS.items() if known.inputs[0] <= count <= known.inputs[1]]
    if alike:
        node.op_type = dice.choice(alike)


def _rewired(model: ModelProto, dice: Dice) -> None:
    at = dice.randrange(len(model.graph.node))
    node = model.graph.node[at]
    if not node.input:
        return
    before = ["x", *(name for other in model.graph.node[:at] for name in other.output if name)]
    node.input[dice.randrange(len(node.input))] = dice.choice([*before, *(t.name for t in model.graph.initializer), ""])


def _outputs(model: ModelProto, dice: Dice) -> None:
    _node(model, dice).output.extend(dice.choice([[""], ["", ""], ["extra"], ["extra", "more"], [""] * 4]))


def _inputs(model: ModelProto, dice: Dice) -> None:
    node = _node(model, dice)
    node.input.append(dice.choice(["", "x", *(t.name for t in model.graph.initializer)]))


def _opset(model: ModelProto, dice: Dice) -> None:
    model.opset_import[0].version = dice.randint(OPSETS.start - 1, NEWEST)


def _inserted(model: ModelProto, dice: Dice) -> None:
    at = dice.randrange(len(model.graph.node))
    node = model.graph.node[at]
    if not node.input or not node.input[0]:
        return
    op = dice.choice(["Identity", "Cast", "Dropout", "Relu", "Abs", "Neg", "Sqrt", "Exp", "Transpose", "Softmax"])
    name = f"inserted{dice.getrandbits(30)}"
    made = helper.make_node(
        op, [node.input[0]], [name], **({"to": dice.choice([1, 6, 7, 9, 10])} if op == "Cast" else {})
    )
    node.input[0] = name
    model.graph.node.insert(at, made)


def _batch(model: ModelProto, dice: Dice) -> None:
    size = dice.choice([1, 2, 3])
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.shape.dim:
            info.type.tensor_type.shape.dim[0].dim_value = size


def _drowned(model: ModelProto, dice: Dice) -> None:
    # an offset that comes and goes
    at = dice.randrange(len(model.graph.node))
    node = model.graph.node[at]
    if not node.input or not node.input[0] or node.input[0] in {t.name for t in model.graph.initializer}:
        return
    size = np.float32(dice.choice([3.0, 2.0**10, 2.0**20, 2.0**25]))
    names = [f"offset{dice.getrandbits(30)}" for _ in range(3)]
    model.graph.initializer.append(numpy_helper.from_array(size, names[0]))
    model.graph.node.insert(at, helper.make_node("Sub", [names[1], names[0]], [names[2]]))
    model.graph.node.insert(at, helper.make_node("Add", [node.input[0], names[0]], [names[1]]))
    model.graph.node[at + 2].input[0] = names[2]


def _type(model: ModelProto, dice: Dice) -> None:
    kind = dice.choice([TensorProto.INT64, TensorProto.FLOAT, TensorProto.FLOAT16])
    name = dice.choice(_node(model, dice).output)
    model.graph.value_info.append(helper.make_tensor_value_info(name, kind, ["N", dice.choice([1, 3, 7])]))


MUTATIONS: list[Callable[[ModelProto, Dice], None]] = [
    *(_attribute, _attribute, _new_attribute, _new_attribute, _no_attribute, _constant, _constant, _dtype, _shape),
    *(_operator, _rewired, _outputs, _inputs, _opset, _opset, _inserted, _inserted, _batch, _drowned, _type),
]

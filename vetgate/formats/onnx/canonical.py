"""The canonical form of a network: the one ONNX file that vetgate writes of it.

One format version, one opset, one domain; names made from the operators and their order; nodes in the order in which
the output asks for them; for each use of a tensor a tensor of its own; no text, no type, no value that is not needed.
The same network gives the same bytes, whatever its file called things and in whatever order it held them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from vetgate.errors import NotUnderstood
from vetgate.formats.manifest import MAX_BYTES, Bytes
from vetgate.formats.onnx.fields import TABLE
from vetgate.formats.onnx.graph import Graph
from vetgate.formats.onnx.nodes import Constant, Node, Value
from vetgate.formats.onnx.wire import BYTES, varint

IR_VERSION = 10
IMAGE, LOGITS, PRODUCER = "image", "logits", "vetgate"
# what the constants of an operator are called, by the place at which they enter it
ROLES: dict[str, tuple[str, ...]] = {
    "Conv": ("input", "weight", "bias"),
    "ConvTranspose": ("input", "weight", "bias"),
    "Gemm": ("input", "weight", "bias"),
    "MatMul": ("left", "weight"),
    "BatchNormalization": ("input", "weight", "bias", "mean", "variance"),
    "InstanceNormalization": ("input", "weight", "bias"),
    "GroupNormalization": ("input", "weight", "bias"),
    "LayerNormalization": ("input", "weight", "bias"),
    "PRelu": ("input", "slope"),
    "Clip": ("input", "min", "max"),
    "Reshape": ("input", "shape"),
    "Expand": ("input", "shape"),
    "Pad": ("input", "pads", "value"),
    "Gather": ("input", "indices"),
    "Slice": ("input", "starts", "ends", "axes", "steps"),
    "Squeeze": ("input", "axes"),
    "Unsqueeze": ("input", "axes"),
}


@dataclass(frozen=True, eq=False)
class Arranged:
    """A graph in canonical order under canonical names; `nodes` is how the node that makes a value is called now."""

    graph: Graph
    nodes: Mapping[str, str]


def arrange(graph: Graph) -> Arranged:
    """Order and name what the output needs; raises NotUnderstood where shared tensors would fill the memory."""
    makers = {node.outputs[0]: node for node in graph.nodes}
    names: dict[str, str] = {graph.input: IMAGE}
    counts: Counter[str] = Counter()
    nodes: list[Node] = []
    constants: dict[str, Constant] = {}
    size = 0
    ordered = _ordered(graph, makers)
    for node in ordered:
        kind = node.op.lower()
        counts[kind] += 1
        name = f"{kind}_{counts[kind]}"
        inputs = []
        for place, given in enumerate(node.inputs):
            if given not in graph.constants:
                inputs.append(names[given] if given else "")
                continue
            role = ROLES.get(node.op, ())[place : place + 1] or (f"input{place}",)
            held = f"{name}.{role[0]}"
            value = graph.constants[given].value
            size += value.nbytes
            if size > MAX_BYTES:
                raise NotUnderstood(
                    f"expected at most {MAX_BYTES} bytes of tensors, one for each use, got more; share fewer"
                )
            constants[held] = Constant(value, len(constants), is_node=False)
            inputs.append(held)
        names[node.outputs[0]] = LOGITS if node.outputs[0] == graph.output else name
        nodes.append(
            replace(node, position=len(nodes), name=name, inputs=tuple(inputs), outputs=(names[node.outputs[0]],))
        )
    called = {old.outputs[0]: new.name for old, new in zip(ordered, nodes, strict=True)}
    return Arranged(replace(graph, nodes=tuple(nodes), constants=constants, input=IMAGE, output=LOGITS), called)


def canonical_bytes(graph: Graph) -> bytes:
    """The file of a settled graph."""
    return b"".join(_parts(arrange(graph).graph))


def structure_digest(arranged: Graph) -> str:
    """A digest that arranged graphs of the same operators, sizes and whole numbers have, whatever else they learned."""
    digest = hashlib.sha256()
    for part in _described(arranged):
        digest.update(part)
    for name, constant in arranged.constants.items():
        digest.update(_header(name, constant.value))
        if np.issubdtype(constant.value.dtype, np.integer):
            digest.update(np.ascontiguousarray(constant.value).tobytes())
    return digest.hexdigest()


def is_written_as(graph: Graph, data: Bytes) -> bool:
    """Whether the file of a settled graph is `data`, which is told without making it."""
    given, at = memoryview(data), 0
    for part in _parts(arrange(graph).graph):
        if given[at : at + len(part)] != part:
            return False
        at += len(part)
    return at == len(given)


def _parts(arranged: Graph) -> Iterator[Bytes]:
    # as protobuf writes it: the fields of each message by their numbers, and the raw data last in a tensor
    first, last = _described(arranged)
    values = [constant.value for constant in arranged.constants.values()]
    headers = [_header(name, constant.value) for name, constant in arranged.constants.items()]
    whole = (
        len(first) + sum(len(header) + value.nbytes for header, value in zip(headers, values, strict=True)) + len(last)
    )
    yield ModelProto(ir_version=IR_VERSION, producer_name=PRODUCER).SerializeToString(deterministic=True)
    yield _opening("Model", "graph", whole) + first
    for header, value in zip(headers, values, strict=True):
        yield header
        yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    yield last
    opset = helper.make_opsetid("", arranged.opset)
    yield ModelProto(opset_import=[opset]).SerializeToString(deterministic=True)


def _described(arranged: Graph) -> tuple[bytes, bytes]:
    # what stands before the tensors of a graph, and what behind them
    image = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, _sizes(arranged.input_dims))
    logits = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, _sizes(arranged.output_dims or ()))
    before = GraphProto(node=[_node(node) for node in arranged.nodes], name=PRODUCER)
    after = GraphProto(input=[image], output=[logits])
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _header(name: str, value: np.ndarray) -> bytes:
    # all of an initializer but its numbers
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    described = TensorProto(dims=value.shape, data_type=kind, name=name).SerializeToString(deterministic=True)
    tensor = bytes(described) + _opening("Tensor", "raw_data", value.nbytes)
    return _opening("Graph", "initializer", len(tensor) + value.nbytes) + tensor


def _opening(kind: str, field: str, size: int) -> bytes:
    # what stands before the `size` bytes of a field
    number = next(number for number, (name, _) in TABLE[kind].items() if name == field)
    return varint(number << 3 | BYTES) + varint(size)


def _ordered(graph: Graph, makers: Mapping[str, Node]) -> list[Node]:
    # what a node takes stands before it, in the order in which it takes it
    done: set[str] = set()
    order: list[Node] = []
    stack = [(makers[graph.output], 0)]
    while stack:
        node, place = stack.pop()
        if node.outputs[0] in done:
            continue
        while place < len(node.inputs) and (node.inputs[place] not in makers or node.inputs[place] in done):
            place += 1
        if place < len(node.inputs):
            stack += [(node, place + 1), (makers[node.inputs[place]], 0)]
        else:
            done.add(node.outputs[0])
            order.append(node)
    return order


def _sizes(dims: tuple[int | None, ...]) -> list[int | str]:
    return ["N" if size is None else size for size in dims]


def _node(node: Node) -> NodeProto:
    written = helper.make_node(node.op, node.inputs, node.outputs, node.name)
    for key, value in sorted(node.attributes.items()):
        written.attribute.append(helper.make_attribute(key, _attribute(value)))
    return written


def _attribute(value: Value) -> object:
    return numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value

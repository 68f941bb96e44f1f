"""An inspected ONNX file as a graph of plain data: one input, one output, every name defined once and used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.table import DOMAINS, OPERATORS, OPSETS, AttributeKind
from vetgate.formats.onnx.wire import ADVICE, inspect_wire
from vetgate.formats.submission import Submission

MAX_NODES = 5_000
MAX_INTS = 4096
Value = float | int | str | np.ndarray | tuple[float, ...] | tuple[int, ...]
_KINDS: dict[AttributeKind, int] = {
    "float": AttributeProto.FLOAT,
    "int": AttributeProto.INT,
    "text": AttributeProto.STRING,
    "tensor": AttributeProto.TENSOR,
    "floats": AttributeProto.FLOATS,
    "ints": AttributeProto.INTS,
}


@dataclass(frozen=True)
class Node:
    """One operator; `position` is its place in the file."""

    position: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Value]

    def __str__(self) -> str:
        return f"{self.op} node {self.name or self.outputs[0]!r}"


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that the file holds, in an initializer or in a Constant node, at `position` there."""

    value: np.ndarray
    position: int
    is_node: bool


@dataclass(frozen=True, eq=False)
class Graph:
    """What an ONNX file computes. Dimensions that vary are None; nodes stand in an order that can be run."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    input: str
    input_dims: tuple[int | None, ...]
    output: str
    output_dims: tuple[int | None, ...] | None
    opset: int


def parse_model(data: bytes) -> ModelProto:
    """The parsed file, after its bytes were inspected; opens no other file."""
    inspect_wire(data)
    try:
        model: ModelProto = ModelProto.FromString(data)
    except Exception as error:
        # the parser's error type depends on which protobuf runtime is installed
        raise NotUnderstood(f"expected an ONNX model, got bytes that do not parse ({error}); {ADVICE}") from error
    return model


def read_graph(model: ModelProto) -> Graph:
    """Check operators and structure of a parsed file; raises NotUnderstood."""
    opset = _opset(model)
    proto = model.graph
    if not 0 < len(proto.node) <= MAX_NODES:
        raise NotUnderstood(f"expected 1 to {MAX_NODES} operators, got {len(proto.node)}; {ADVICE}")
    constants = {t.name: Constant(_array(t), i, is_node=False) for i, t in enumerate(proto.initializer)}
    if len(constants) != len(proto.initializer) or "" in constants:
        raise NotUnderstood("expected initializers with names of their own, got one twice or unnamed; export it again")
    inputs = [i for i in proto.input if i.name not in constants]  # old files list weights as inputs too
    if len(inputs) != 1 or len(proto.output) != 1:
        raise NotUnderstood(
            f"expected one input and one output, got {len(inputs)} and {len(proto.output)}; "
            "export a graph from images to logits only"
        )
    nodes: list[Node] = []
    for position, given in enumerate(proto.node):
        node = _node(position, given, opset)
        if node.op == "Constant":
            name = node.outputs[0]
            if name in constants:
                raise NotUnderstood(f"expected every name once, got {name!r} twice; export it again")
            constants[name] = Constant(_constant(node), position, is_node=True)
        else:
            nodes.append(node)
    dims = _dims(inputs[0], "input")
    graph = Graph(
        tuple(nodes),
        constants,
        inputs[0].name,
        dims or (),
        proto.output[0].name,
        _dims(proto.output[0], "output"),
        opset,
    )
    _check_names(graph)
    return graph


def check_description(graph: Graph, submission: Submission) -> bool:
    """Whether the graph takes images as (N, H, W, C); raises NotUnderstood when shape or classes do not fit."""
    channels, height, width = submission.input_shape
    dims = graph.input_dims
    fits = len(dims) == 4 and _fit(dims[1:], (channels, height, width))
    last = len(dims) == 4 and _fit(dims[1:], (height, width, channels))
    if not fits and not last:
        raise NotUnderstood(
            f"expected an input of shape (N, {channels}, {height}, {width}) as submission.yaml says, got "
            f"{_shown(dims)}; correct input_shape or export the model for it"
        )
    out = graph.output_dims
    if out is not None and (len(out) != 2 or not _fit(out[1:], (submission.n_classes,))):
        raise NotUnderstood(
            f"expected an output of shape (N, {submission.n_classes}) as submission.yaml says, got {_shown(out)}; "
            "correct classes or export the model for them"
        )
    return not fits


def _fit(dims: tuple[int | None, ...], expected: tuple[int, ...]) -> bool:
    return len(dims) == len(expected) and all(d is None or d == e for d, e in zip(dims, expected, strict=True))


def _shown(dims: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if d is None else str(d) for d in dims) + ")"


def _opset(model: ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
    if len(versions) != 1:
        raise NotUnderstood(f"expected one version of the standard operators, got {versions}; {ADVICE}")
    if versions[0] not in OPSETS:
        raise NotUnderstood(f"expected opset {OPSETS.start} to {OPSETS.stop - 1}, got {versions[0]}; convert the model")
    return int(versions[0])


def _node(position: int, given: NodeProto, opset: int) -> Node:
    label = f"{given.op_type} node {given.name or position}"
    if given.domain not in DOMAINS:
        raise NotUnderstood(f"expected standard operators, got {label} of domain {given.domain!r}; {ADVICE}")
    operator = OPERATORS.get(given.op_type)
    if given.op_type in ("If", "Loop", "Scan"):
        raise NotUnderstood(f"expected a graph without control flow, got {label}; export it without If, Loop and Scan")
    if operator is None or opset < operator.since:
        raise NotUnderstood(
            f"expected a known operator, got {label} of opset {opset}; export without it or hand in safetensors with a "
            f"named architecture. Known: {', '.join(OPERATORS)}"
        )
    least, most = operator.inputs
    if not least <= len(given.input) <= most or any(not name for name in given.input[:least]):
        raise NotUnderstood(
            f"expected {least} to {most} inputs for {label}, got {list(given.input)[:8]}; export it again"
        )
    if not 1 <= len(given.output) <= operator.outputs or not given.output[0]:
        raise NotUnderstood(f"expected 1 to {operator.outputs} outputs for {label}, got {list(given.output)[:8]}")
    attributes: dict[str, Value] = {}
    for item in given.attribute:
        spec = operator.attributes.get(item.name)
        if spec is None or opset >= spec.before or item.name in attributes:
            raise NotUnderstood(f"expected attributes {list(operator.attributes)} for {label}, got {item.name!r}")
        if item.type != _KINDS[spec.kind]:
            raise NotUnderstood(f"expected {item.name} of {label} as {spec.kind}, got another type; export it again")
        attributes[item.name] = _value(item, spec.kind, label)
    return Node(position, given.name, given.op_type, tuple(given.input), tuple(given.output), attributes)


def _value(item: AttributeProto, kind: AttributeKind, label: str) -> Value:
    if kind in ("ints", "floats") and max(len(item.ints), len(item.floats)) > MAX_INTS:
        raise NotUnderstood(f"expected at most {MAX_INTS} numbers in {item.name} of {label}; store a tensor instead")
    match kind:
        case "float":
            return float(item.f)
        case "int":
            return int(item.i)
        case "text":
            return bytes(item.s).decode("ascii", "replace")
        case "tensor":
            return _array(item.t)
        case "floats":
            return tuple(float(v) for v in item.floats)
        case "ints":
            return tuple(int(v) for v in item.ints)


def _constant(node: Node) -> np.ndarray:
    if len(node.attributes) != 1:
        raise NotUnderstood(f"expected one value in {node}, got {list(node.attributes)}; export it again")
    kind, value = next(iter(node.attributes.items()))
    return np.asarray(value, None if kind == "value" else np.float32 if "float" in kind else np.int64)


def _array(tensor: TensorProto) -> np.ndarray:
    array: np.ndarray = numpy_helper.to_array(tensor)
    # a lone infinity is a limit of Clip or Pad, not a weight
    sound = np.isfinite(array).all() or (array.size == 1 and not np.isnan(array).any())
    if not sound:
        raise NotUnderstood(
            f"expected finite weights, got NaN or infinity in tensor {tensor.name!r}; hand in a model that was trained"
        )
    return array


def _dims(info: ValueInfoProto, role: str) -> tuple[int | None, ...] | None:
    kind = info.type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        raise NotUnderstood(f"expected a float32 {role}, got ONNX data type {kind.elem_type}; export images in float32")
    if not kind.HasField("shape"):
        if role == "output":
            return None
        raise NotUnderstood(
            "expected an input with a shape (N, C, H, W), got none; export the model with its input's shape"
        )
    dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    if any(d is not None and d < 1 for d in dims):
        raise NotUnderstood(f"expected positive sizes for the {role}, got {list(dims)[:8]}; export it again")
    return dims


def _check_names(graph: Graph) -> None:
    defined = set(graph.constants)
    if graph.input in defined or not graph.input:
        raise NotUnderstood(f"expected an input with a name of its own, got {graph.input!r}; export it again")
    defined.add(graph.input)
    for node in graph.nodes:
        for name in node.inputs:
            if name and name not in defined:
                raise NotUnderstood(
                    f"expected the inputs of {node} to be computed before it, got {name!r}: a cycle, a missing tensor "
                    "or an unsorted graph; export it again"
                )
        for name in filter(None, node.outputs):
            if name in defined:
                raise NotUnderstood(f"expected every name once, got {name!r} twice; export it again")
            defined.add(name)
    _check_use(graph)


def _check_use(graph: Graph) -> None:
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.outputs[1:]):
            raise NotUnderstood(f"expected only the first output of {node} in use, got another one; {ADVICE}")
        if node.outputs[0] not in needed:
            raise NotUnderstood(f"expected every operator to lead to the output, got {node}, which does not; remove it")
        needed.update(filter(None, node.inputs))
    idle = [name for name in graph.constants if name not in needed]
    if idle:
        raise NotUnderstood(f"expected every tensor to be used, got {len(idle)} that are not: {idle[:5]}; remove them")
    if graph.input not in needed or graph.output in graph.constants or graph.output == graph.input:
        raise NotUnderstood("expected an output computed from the input, got one that is not; export the model again")

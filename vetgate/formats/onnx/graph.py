"""An inspected ONNX file as a graph of plain data: one input, one output, every name defined once and used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from vetgate.errors import NotUnderstood
from vetgate.formats.manifest import Bytes
from vetgate.formats.onnx.nodes import Constant as Constant
from vetgate.formats.onnx.nodes import Node as Node
from vetgate.formats.onnx.nodes import Value as Value
from vetgate.formats.onnx.reading.forms import Forms
from vetgate.formats.onnx.reading.tensors import WIDTHS, array_of, check_files_beside
from vetgate.formats.onnx.table import DOMAINS, OPERATORS, OPSETS, AttributeKind
from vetgate.formats.onnx.wire import ADVICE, inspect_wire
from vetgate.formats.submission import Submission

MAX_NODES = 5_000
MAX_INTS = 4096
CALL = (
    'export for inference with torch.onnx.export(model.eval(), (images,), "model.onnx", opset_version=20, '
    "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
)
_KINDS: dict[AttributeKind, int] = {
    "float": AttributeProto.FLOAT,
    "int": AttributeProto.INT,
    "text": AttributeProto.STRING,
    "tensor": AttributeProto.TENSOR,
    "floats": AttributeProto.FLOATS,
    "ints": AttributeProto.INTS,
}


@dataclass(frozen=True, eq=False)
class Graph:
    """What an ONNX file computes. Dimensions that vary are None; nodes stand in an order that can be run.

    `changes` says in what this differs from what the file computes: in precision, which a runtime of the file shows.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    input: str
    input_dims: tuple[int | None, ...]
    output: str
    output_dims: tuple[int | None, ...] | None
    opset: int
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Parsed:
    """A parsed file; what `proto` holds as raw data are places in `data`."""

    proto: ModelProto
    data: Bytes


def parse_model(data: Bytes) -> Parsed:
    """The parsed file, after its bytes were inspected; opens no other file."""
    walked = inspect_wire(data)
    try:
        return Parsed(ModelProto.FromString(walked), data)
    except Exception as error:
        # the parser's error type depends on which protobuf runtime is installed
        raise NotUnderstood(f"expected an ONNX model, got bytes that do not parse ({error}); {ADVICE}") from error


def read_graph(parsed: Parsed, *, output: str | None = None, beside: Mapping[str, Bytes] | None = None) -> Graph:
    """Check operators and structure of a parsed file; raises NotUnderstood.

    `output` is the one that is read where there are several, `beside` the files that hold weights, by name.
    """
    model, data, beside = parsed.proto, parsed.data, beside or {}
    opset, proto = _opset(model), model.graph
    if not 0 < len(proto.node) <= MAX_NODES:
        raise NotUnderstood(f"expected 1 to {MAX_NODES} operators, got {len(proto.node)}; {ADVICE}")
    _check_operators(proto.node, opset)
    check_files_beside(model, beside)
    constants = {t.name: Constant(array_of(t, data, beside), i, is_node=False) for i, t in enumerate(proto.initializer)}
    if len(constants) != len(proto.initializer) or "" in constants:
        raise NotUnderstood("expected initializers with names of their own, got one twice or unnamed; export it again")
    inputs = [i for i in proto.input if i.name not in constants]  # old files list weights as inputs too
    chosen = _chosen(proto.output, output)
    if len(inputs) != 1:
        raise NotUnderstood(
            f"expected one input and one output, got {len(inputs)} inputs; export a graph that takes images only"
        )
    nodes: list[Node] = []
    for position, given in enumerate(proto.node):
        node = _node(position, given, opset, data, beside)
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
        chosen.name,
        _dims(chosen, "output"),
        opset,
        _changes(model),
    )
    _check_names(graph)
    return _in_one_form(_leading_to(graph, [info.name for info in proto.output]), len(proto.node))


def _chosen(outputs: Iterable[ValueInfoProto], name: str | None) -> ValueInfoProto:
    by_name = {info.name: info for info in outputs}
    if name is None and len(by_name) == 1:
        return next(iter(by_name.values()))
    if name is None:
        raise NotUnderstood(
            f"expected one output, got {list(by_name)[:8]}; name the one with the logits as `output` in submission.yaml"
        )
    if name not in by_name:
        raise NotUnderstood(f"expected an output {name!r} as submission.yaml says, got {list(by_name)[:8]}; correct it")
    return by_name[name]


def _changes(model: ModelProto) -> tuple[str, ...]:
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {info.type.tensor_type.elem_type for info in model.graph.input}
    kinds |= {a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    found = sorted(TensorProto.DataType.Name(kind).lower() for kind in kinds & set(WIDTHS) - {TensorProto.FLOAT})
    return tuple(f"{kind} is computed in float32" for kind in found)


def _leading_to(graph: Graph, outputs: list[str]) -> Graph:
    # what leads to the other outputs only is dropped; what leads to none is refused
    _check_use(graph, outputs)
    if len(outputs) == 1:
        return graph
    needed = {graph.output}
    nodes = []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            nodes.append(node)
            needed.update(node.inputs)
    constants = {name: constant for name, constant in graph.constants.items() if name in needed}
    return replace(graph, nodes=tuple(reversed(nodes)), constants=constants)


def _in_one_form(graph: Graph, positions: int) -> Graph:
    taken = {name for node in graph.nodes for name in node.outputs} | {graph.input}
    forms = Forms(graph.opset, dict(graph.constants), positions, taken)
    nodes = forms.rewrite(graph.nodes)
    used = {name for node in nodes for name in node.inputs}
    constants = {name: constant for name, constant in forms.constants.items() if name in used}
    return replace(graph, nodes=tuple(nodes), constants=constants)


def check_description(graph: Graph, submission: Submission) -> bool:
    """Whether the graph takes images as (N, H, W, C); raises NotUnderstood when shape or classes do not fit."""
    channels, height, width = submission.input_shape
    dims = graph.input_dims
    fits = len(dims) == 4 and _fit(dims[1:], (channels, height, width)) and submission.layout != "NHWC"
    last = len(dims) == 4 and _fit(dims[1:], (height, width, channels)) and submission.layout != "NCHW"
    if not fits and not last:
        raise NotUnderstood(
            f"expected an input of shape (N, {channels}, {height}, {width}) as submission.yaml says, got "
            f"{_shown(dims)}; correct input_shape and layout or export the model for it"
        )
    out = graph.output_dims
    # some networks leave the height and width of their last map, one by one
    ones = () if out is None else out[2:]
    if out is not None and (not _fit(out[1:2], (submission.n_classes,)) or any(d not in (None, 1) for d in ones)):
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


def _check_operators(nodes: Iterable[NodeProto], opset: int) -> None:
    # everything that is missing at once, so that nobody has to export again for each
    flow = [f"{n.op_type} node {n.name}" for n in nodes if n.op_type in ("If", "Loop", "Scan")]
    if flow:
        raise NotUnderstood(
            f"expected a graph without control flow, got {flow[:5]}; export it without If, Loop and Scan: {CALL}"
        )
    foreign = sorted({f"{n.op_type} of {n.domain!r}" for n in nodes if n.domain not in DOMAINS})
    if foreign:
        raise NotUnderstood(f"expected standard operators, got {foreign[:20]}; export it with none of its own: {CALL}")
    missing = Counter(n.op_type for n in nodes if n.op_type not in OPERATORS or opset < OPERATORS[n.op_type].since)
    if missing:
        counted = ", ".join(f"{count} x {name}" for name, count in sorted(missing.items()))
        raise NotUnderstood(
            f"expected known operators, got {counted} of opset {opset}, which are not; {CALL}, or hand in safetensors "
            f"with a named architecture. Known: {', '.join(OPERATORS)}"
        )


def _node(position: int, given: NodeProto, opset: int, data: Bytes, beside: Mapping[str, Bytes]) -> Node:
    label = f"{given.op_type} node {given.name or position}"
    operator = OPERATORS[given.op_type]
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
        attributes[item.name] = _value(item, spec.kind, label, data, beside)
    if given.op_type == "Cast" and attributes.get("to") in WIDTHS:
        attributes["to"] = int(TensorProto.FLOAT)
    return Node(position, given.name, given.op_type, tuple(given.input), tuple(given.output), attributes)


def _value(item: AttributeProto, kind: AttributeKind, label: str, data: Bytes, beside: Mapping[str, Bytes]) -> Value:
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
            return array_of(item.t, data, beside)
        case "floats":
            return tuple(float(v) for v in item.floats)
        case "ints":
            return tuple(int(v) for v in item.ints)


def _constant(node: Node) -> np.ndarray:
    if len(node.attributes) != 1:
        raise NotUnderstood(f"expected one value in {node}, got {list(node.attributes)}; export it again")
    kind, value = next(iter(node.attributes.items()))
    return np.asarray(value, None if kind == "value" else np.float32 if "float" in kind else np.int64)


def _dims(info: ValueInfoProto, role: str) -> tuple[int | None, ...] | None:
    kind = info.type.tensor_type
    if kind.elem_type not in WIDTHS:
        raise NotUnderstood(
            f"expected floating-point numbers as {role}, got ONNX data type {kind.elem_type}; export images in float32"
        )
    if not kind.HasField("shape"):
        if role == "output":
            return None
        raise NotUnderstood(
            "expected an input with a shape (N, C, H, W), got none; export the model with its input's shape"
        )
    # some exporters write -1 or 0 for a size that varies
    return tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)


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


def _check_use(graph: Graph, outputs: list[str]) -> None:
    needed = set(outputs)
    for node in reversed(graph.nodes):
        if node.op != "Split" and any(name in needed for name in node.outputs[1:]):
            raise NotUnderstood(f"expected only the first output of {node} in use, got another one; {ADVICE}")
        if needed.isdisjoint(node.outputs):
            raise NotUnderstood(f"expected every operator to lead to the output, got {node}, which does not; remove it")
        needed.update(filter(None, node.inputs))
    idle = [name for name in graph.constants if name not in needed]
    if idle:
        raise NotUnderstood(f"expected every tensor to be used, got {len(idle)} that are not: {idle[:5]}; remove them")
    if graph.input not in needed or graph.output in graph.constants or graph.output == graph.input:
        raise NotUnderstood("expected an output computed from the input, got one that is not; export the model again")

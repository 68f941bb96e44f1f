"""ONNX: a data-only graph of known operators, in float32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vetgate.errors import NotUnderstood
from vetgate.formats.manifest import Bytes
from vetgate.formats.readers import Form, Format

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vetgate.formats.onnx.graph import Graph
    from vetgate.formats.onnx.module import OnnxModule
    from vetgate.formats.submission import Submission


WRITTEN = "model.onnx"
# what the architecture of a graph is called, by the digest of all but what it learned
KIND, KIND_OF = re.compile(r"graph-[0-9a-f]{16}"), "graph-{:.16}"
# grey or colour
CHANNELS = (1, 3)
WEIGHTS = re.compile(r".+([._]data(_\d+)?|\.bin|\.weights?)", re.IGNORECASE)


def sniff(data: Bytes) -> bool:
    """Protobuf has no magic number: whatever is not known as something else."""
    from vetgate.formats.sniff import refusal

    return refusal(data) is None


def inspect(members: Mapping[str, Bytes], submission: Submission) -> None:
    """Read the graph to its last byte, and hold it against what the submission says."""
    from vetgate.formats.onnx.reading.submitted import read_submitted

    read_submitted(members, submission)


def canonical(members: Mapping[str, Bytes], submission: Submission) -> tuple[Submission, bytes]:
    """The graph as vetgate writes it."""
    from vetgate.formats.onnx.canonical import canonical_bytes

    graph, names = _read(members, submission)
    return _redescribed(graph, names, submission), canonical_bytes(graph)


def _redescribed(graph: Graph, names: Mapping[str, str], submission: Submission) -> Submission:
    from vetgate.formats.onnx.canonical import arrange, structure_digest
    from vetgate.formats.onnx.module import INPUT, build_module
    from vetgate.formats.onnx.reading.submitted import plain_description

    layer, arranged = submission.layer, arrange(graph)
    if layer is not None:
        module = build_module(graph)
        layer = _layer(module, layer, names)
        made = {step.name: step.output for step in module.steps}
        layer = layer if layer == INPUT else arranged.nodes[made[layer]]
    return plain_description(submission, layer).model_copy(
        update={"model": WRITTEN, "architecture": KIND_OF.format(structure_digest(arranged.graph))}
    )


def load(data: Bytes, submission: Submission) -> tuple[nn.Module, str, bool]:
    """The graph as a module."""
    return _built(*_read({submission.model: data}, submission), submission)


def _built(graph: Graph, names: Mapping[str, str], submission: Submission) -> tuple[nn.Module, str, bool]:
    from vetgate.formats.onnx.module import build_module, default_layer

    module = build_module(graph)
    layer = default_layer(module) if submission.layer is None else _layer(module, submission.layer, names)
    return module, layer, module.stripped is not None


def write(data: Bytes, submission: Submission, tensors: Mapping[str, Tensor]) -> bytes:
    """The graph with other weights."""
    from vetgate.formats.onnx.write import write_back

    return write_back(_read({submission.model: data}, submission)[0], tensors)


def serve(data: Bytes, submission: Submission) -> nn.Module:
    """The graph as onnxruntime computes it."""
    from vetgate.formats.onnx.module import build_module

    # a third of a second, which nothing else pays
    from vetgate.formats.onnx.runtime import RuntimeModule

    ours = build_module(_read({submission.model: data}, submission)[0], strip=False)
    return RuntimeModule(data, ours).eval()


def hold(data: Bytes, submission: Submission, members: Mapping[str, Bytes], described: Submission) -> bool:
    """Read the written file, once: whether it is written so again, and runs here and in onnxruntime to the same end."""
    from vetgate.formats.onnx.canonical import is_written_as
    from vetgate.formats.onnx.equal import check_runtime, outputs, probes
    from vetgate.formats.probe_model import probe

    graph, names = _read({submission.model: data}, submission)
    if not is_written_as(graph, data) or _redescribed(graph, names, submission) != submission:
        return False
    module, layer, _ = _built(graph, names, submission)
    probe(module, layer, submission)
    x = probes(submission.input_shape)
    expected = outputs(graph, x)
    # onnxruntime needs the room
    del graph, module
    # what is of another format cannot be run in onnxruntime
    same = described.format == submission.format
    check_runtime(data, x, expected, members=members if same else None, described=described if same else None)
    return True


def _read(members: Mapping[str, Bytes], submission: Submission) -> tuple[Graph, Mapping[str, str]]:
    # the settled graph of a file, and under which name what is named in the file is found there
    from vetgate.formats.onnx.reading.submitted import read_submitted
    from vetgate.formats.onnx.rewriting.settle import settle

    return settle(read_submitted(members, submission), submission.input_shape)


def _layer(module: OnnxModule, given: str, names: Mapping[str, str]) -> str:
    found = module.find(given) or (module.find(names[given]) if given in names else None)
    if found is None:
        known = ", ".join([name for name, _ in module.named_modules() if name][-12:])
        raise NotUnderstood(f"expected a layer of the graph, got {given!r}; there are {known}")
    return found


def says(members: Mapping[str, Bytes], model: str) -> dict[str, Any]:
    """The sizes of input and output, as far as they are fixed."""
    from vetgate.formats.onnx.graph import parse_model

    graph = parse_model(members[model]).proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    sizes = [
        [each.dim_value for each in info.type.tensor_type.shape.dim]
        for infos in ([i for i in graph.input if i.name not in constants], graph.output)
        for info in list(infos)[:1]
    ]
    if len(sizes) != 2:
        raise NotUnderstood("expected an ONNX graph with input and output, got neither; export the model again")
    image, logits = sizes
    fields: dict[str, Any] = {}
    if len(image) == 4:
        last = image[3] in CHANNELS and image[1] not in CHANNELS
        shape = [image[3], image[1], image[2]] if last else image[1:]
        fields = {"input_shape": shape if all(side > 0 for side in shape) else None}
        fields |= {"layout": "NHWC"} if last else {}
    if len(graph.output) > 1:
        fields["output"] = graph.output[0].name
    return fields | {"classes": logits[1] if len(logits) > 1 and logits[1] > 1 else None}


def belongs(name: str) -> bool:
    """Whether a file is called as exporters call those that hold a model's weights."""
    return WEIGHTS.fullmatch(name) is not None


FORMAT = Format(
    accepts="an ONNX graph (data only)",
    sniff=sniff,
    belongs=belongs,
    mapped=True,
    takes_architecture=lambda name: KIND.fullmatch(name) is not None,
    inspect=inspect,
    says=says,
    canonical=canonical,
    form=Form(load=load, write=write, serve=serve, hold=hold),
)

"""ONNX: a data-only graph of known operators, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vetgate.errors import NotUnderstood
from vetgate.formats.readers import Form, Format

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vetgate.formats.submission import Submission

WRITTEN = "model.onnx"


def sniff(data: bytes) -> bool:
    """Protobuf has no magic number: whatever is not known as something else."""
    from vetgate.formats.sniff import refusal

    return refusal(data) is None


def inspect(members: Mapping[str, bytes], submission: Submission) -> None:
    """Read the graph to its last byte, and hold it against what the submission says."""
    from vetgate.formats.onnx.graph import check_description, parse_model, read_graph

    check_description(read_graph(parse_model(members[submission.model])), submission)


def canonical(members: Mapping[str, bytes], submission: Submission) -> tuple[Submission, bytes]:
    """The graph as vetgate writes it."""
    from vetgate.formats.onnx.canonical import canonical_bytes
    from vetgate.formats.onnx.graph import parse_model, read_graph

    return (
        submission.model_copy(update={"model": WRITTEN}),
        canonical_bytes(read_graph(parse_model(members[submission.model]))),
    )


def load(data: bytes, submission: Submission) -> tuple[nn.Module, str, bool]:
    """The graph as a module."""
    from vetgate.formats.onnx.graph import check_description, parse_model, read_graph
    from vetgate.formats.onnx.module import build_module, default_layer

    graph = read_graph(parse_model(data))
    module = build_module(graph, channels_last=check_description(graph, submission))
    layer = default_layer(module) if submission.layer is None else module.find(submission.layer)
    if layer is None:
        names = ", ".join([name for name, _ in module.named_modules() if name][-12:])
        raise NotUnderstood(f"expected a layer of the graph, got {submission.layer!r}; there are {names}")
    return module, layer, module.stripped is not None


def write(data: bytes, submission: Submission, tensors: Mapping[str, Tensor]) -> bytes:
    """The graph with other weights."""
    from vetgate.formats.onnx.write import write_back

    return write_back(data, tensors)


def serve(data: bytes, submission: Submission) -> nn.Module:
    """The graph as onnxruntime computes it."""
    # a third of a second, which nothing else pays
    from vetgate.formats.onnx.runtime import as_served

    return as_served(data, submission)


FORMAT = Format(
    accepts="an ONNX graph (float32, data only)",
    sniff=sniff,
    inspect=inspect,
    canonical=canonical,
    form=Form(load=load, write=write, serve=serve),
)

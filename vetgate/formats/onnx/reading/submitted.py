"""A submitted ONNX file as the graph that is written in its place: images (N, C, H, W) in [0, 1] in, logits (N, K) out.

What `submission.yaml` says of the pixels that the file expects becomes operators in front of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vetgate.formats.manifest import Bytes
from vetgate.formats.onnx.graph import Graph, check_description, parse_model, read_graph
from vetgate.formats.onnx.nodes import Node
from vetgate.formats.onnx.reading.forms import Forms
from vetgate.formats.onnx.reading.quantised import dequantised
from vetgate.formats.submission import Submission


def read_submitted(members: Mapping[str, Bytes], submission: Submission) -> Graph:
    """The graph of the model among `members`, whose other files hold its weights; raises NotUnderstood."""
    beside = {name: data for name, data in members.items() if name != submission.model}
    graph = read_graph(parse_model(members[submission.model]), output=submission.output, beside=beside)
    channels_last = check_description(graph, submission)
    return _flat_logits(_in_front(dequantised(graph), submission, channels_last))


def plain_description(submission: Submission, layer: str | None) -> Submission:
    """The description of the written file, where the layer is called `layer`: the graph holds what was said of it."""
    return submission.model_copy(
        update={**dict.fromkeys(("normalization", "layout", "color", "output")), "layer": layer}
    )


def _in_front(graph: Graph, submission: Submission, channels_last: bool) -> Graph:
    forms, like = _forms(graph), graph.nodes[0]
    steps: list[tuple[str, tuple[str, ...], dict[str, tuple[int, ...] | int]]] = []
    if submission.color == "BGR":
        steps.append(("Gather", (forms.held("color", np.array([2, 1, 0], np.int64)),), {"axis": 1}))
    if submission.normalization is not None:
        mean, std = (
            np.array(values, np.float32).reshape(-1, 1, 1)
            for values in (submission.normalization.mean, submission.normalization.std)
        )
        steps += [("Sub", (forms.held("mean", mean),), {}), ("Div", (forms.held("std", std),), {})]
    if channels_last:
        steps.append(("Transpose", (), {"perm": (0, 2, 3, 1)}))
    if not steps:
        return graph
    image = forms.fresh("image")
    made: list[Node] = []
    for number, (op, inputs, attributes) in enumerate(steps):
        given = made[-1].outputs[0] if made else image
        output = graph.input if number == len(steps) - 1 else forms.fresh("pixels")
        made.append(replace(forms.node(like, op, (given, *inputs), output, attributes), name=""))
    dims = (graph.input_dims[0], *submission.input_shape)
    return replace(graph, nodes=(*made, *graph.nodes), constants=forms.constants, input=image, input_dims=dims)


def _flat_logits(graph: Graph) -> Graph:
    dims = graph.output_dims
    if dims is None or len(dims) <= 2:
        return graph
    forms = _forms(graph)
    flat = replace(forms.node(graph.nodes[-1], "Flatten", (graph.output,), forms.fresh("logits"), {"axis": 1}), name="")
    return replace(graph, nodes=(*graph.nodes, flat), output=flat.outputs[0], output_dims=dims[:2])


def _forms(graph: Graph) -> Forms:
    taken = {name for node in graph.nodes for name in node.outputs} | {graph.input}
    return Forms(graph.opset, dict(graph.constants), max(node.position for node in graph.nodes), taken)

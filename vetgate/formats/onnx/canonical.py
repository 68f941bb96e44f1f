"""The canonical form of a graph: the one file that vetgate writes of it."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vetgate.formats.onnx.graph import Graph, Node


def canonical_bytes(graph: Graph) -> bytes:
    """The graph as an ONNX file: the same for the same graph, whatever it was read from."""
    nodes = [_node(node) for node in graph.nodes]
    dims = ["N" if size is None else size for size in graph.input_dims]
    image = helper.make_tensor_value_info(graph.input, TensorProto.FLOAT, dims)
    out = graph.output_dims
    logits = helper.make_tensor_value_info(
        graph.output, TensorProto.FLOAT, None if out is None else ["N" if size is None else size for size in out]
    )
    weights = [numpy_helper.from_array(constant.value, name) for name, constant in graph.constants.items()]
    written = helper.make_graph(nodes, "vetgate", [image], [logits], weights)
    opset = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(written, opset_imports=opset, ir_version=8, producer_name="vetgate")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _node(node: Node) -> NodeProto:
    written = helper.make_node(node.op, node.inputs, node.outputs, node.name)
    for key, value in sorted(node.attributes.items()):
        given = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        written.attribute.append(helper.make_attribute(key, given))
    return written

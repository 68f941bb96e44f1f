"""Writing repaired weights back into the graph they came from: the same operators, other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vetgate.errors import DefenceError
from vetgate.formats.onnx.canonical import canonical_bytes
from vetgate.formats.onnx.graph import Graph
from vetgate.formats.onnx.module import build_module
from vetgate.formats.onnx.nodes import Constant
from vetgate.formats.onnx.operands import Slot


def write_back(graph: Graph, tensors: Mapping[str, Tensor]) -> bytes:
    """The canonical form of a settled graph with the values of `tensors`, named as the state dict of its module.

    Raises DefenceError when the tensors are not those of this graph.
    """
    module = build_module(graph)
    before = module.state_dict()
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in tensors.items()}:
        odd = sorted(set(before) ^ set(tensors))[:5]
        raise DefenceError(f"expected the tensors of the submitted graph, got others {odd}; repair weights in place")
    constants, nodes = dict(graph.constants), list(graph.nodes)
    for name, slots in module.slots.items():
        for slot in slots:
            given = tensors[f"{name}.{slot.tensor}"]
            if torch.equal(given.cpu(), before[f"{name}.{slot.tensor}"]):
                continue
            node = nodes[slot.node]
            # each use of a tensor gets its own; the writer leaves out what nothing uses any more
            fresh = f"{node.outputs[0]}/{slot.index}/repaired"
            shape = constants[node.inputs[slot.index]].value.shape
            constants[fresh] = Constant(_file_layout(slot, given).reshape(shape), 0, is_node=False)
            inputs = [fresh if place == slot.index else taken for place, taken in enumerate(node.inputs)]
            nodes[slot.node] = replace(node, inputs=tuple(inputs))
    return canonical_bytes(replace(graph, nodes=tuple(nodes), constants=constants))


def _file_layout(slot: Slot, tensor: Tensor) -> np.ndarray:
    value = tensor.detach().cpu()
    array: np.ndarray = (value.T if slot.transposed else value).contiguous().numpy()
    return array

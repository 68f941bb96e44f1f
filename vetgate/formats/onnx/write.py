"""Writing repaired weights back into the graph they came from: the same operators, other numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor

from vetgate.errors import DefenceError
from vetgate.formats.onnx.graph import Constant, Graph, parse_model, read_graph
from vetgate.formats.onnx.module import build_module
from vetgate.formats.onnx.operands import Slot


def write_back(data: bytes, tensors: Mapping[str, Tensor]) -> bytes:
    """The file `data` with the values of `tensors`, which are named as the state dict of its module.

    A tensor that several operators share and that differs between them afterwards is split, and one that the graph
    computes from others is put in their place. Raises DefenceError when the tensors are not those of this graph.
    """
    model = parse_model(data)
    graph = read_graph(model)
    module = build_module(graph, channels_last=False)
    before = module.state_dict()
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in tensors.items()}:
        odd = sorted(set(before) ^ set(tensors))[:5]
        raise DefenceError(f"expected the tensors of the submitted graph, got others {odd}; repair weights in place")
    slots: dict[str, list[tuple[Slot, str]]] = defaultdict(list)
    for name, found in module.slots.items():
        for slot in found:
            slots[model.graph.node[slot.node].input[slot.index]].append((slot, f"{name}.{slot.tensor}"))
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    for source, places in slots.items():
        changed = [(slot, tensors[key]) for slot, key in places if not torch.equal(tensors[key].cpu(), before[key])]
        if changed:
            alone = uses[source] == len(places) == len(changed)
            _write(model, graph, source, [(slot, _file_layout(slot, value)) for slot, value in changed], alone)
    _prune(model, graph)
    written: bytes = model.SerializeToString()
    return written


def _file_layout(slot: Slot, tensor: Tensor) -> np.ndarray:
    value = tensor.detach().cpu()
    array: np.ndarray = (value.T if slot.transposed else value).contiguous().numpy()
    return array


def _write(model: ModelProto, graph: Graph, source: str, changed: list[tuple[Slot, np.ndarray]], alone: bool) -> None:
    first = changed[0][1]
    constant = graph.constants.get(source)
    if constant is not None and alone and all(np.array_equal(value, first) for _, value in changed):
        _replace(model, constant, source, first.reshape(constant.value.shape))
        return
    taken = {t.name for t in model.graph.initializer} | {name for node in graph.nodes for name in node.outputs}
    for slot, value in changed:
        number = 0
        while (fresh := f"{source}.repaired{number}") in taken or fresh in graph.constants:
            number += 1
        taken.add(fresh)
        model.graph.initializer.append(numpy_helper.from_array(value, fresh))
        model.graph.node[slot.node].input[slot.index] = fresh
    # before version 4 every initializer had to be listed as an input as well
    model.ir_version = max(model.ir_version, 4)


def _replace(model: ModelProto, constant: Constant, name: str, value: np.ndarray) -> None:
    if constant.is_node:
        node = model.graph.node[constant.position]
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value)))
    else:
        model.graph.initializer[constant.position].CopyFrom(numpy_helper.from_array(value, name))


def _prune(model: ModelProto, graph: Graph) -> None:
    # what a split or replaced tensor leaves behind would be refused as unused
    proto = model.graph
    needed = {graph.output}
    for position in reversed(range(len(proto.node))):
        node = proto.node[position]
        if needed.isdisjoint(node.output):
            del proto.node[position]
        else:
            needed.update(node.input)
    for position in reversed(range(len(proto.initializer))):
        if proto.initializer[position].name not in needed:
            del proto.initializer[position]
    for position in reversed(range(len(proto.input))):
        if proto.input[position].name not in needed:
            del proto.input[position]

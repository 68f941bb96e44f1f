"""Networks in whole numbers (QDQ) as networks in float32: the same weights and limits, without the rounding between.

Weights that are dequantised are constants, and computed once. Where activations pass through whole numbers they are
rounded and limited; a step has no gradient and hides what moves less than one of them, so that the rounding is left out
and the limits stay, which often stand for a Relu. What is vetted is what is written, signed and served: this network.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.graph import Graph
from vetgate.formats.onnx.nodes import Constant, Node
from vetgate.formats.onnx.reading.forms import Forms

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def dequantised(graph: Graph) -> Graph:
    """The graph without whole numbers; raises NotUnderstood for pairs that do not belong together."""
    if not any(node.op in (QUANTISE, DEQUANTISE) for node in graph.nodes):
        return graph
    taken = {name for node in graph.nodes for name in node.outputs} | {graph.input}
    forms = Forms(graph.opset, dict(graph.constants), max(node.position for node in graph.nodes), taken)
    whole = {node.outputs[0]: node for node in graph.nodes if node.op == QUANTISE}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == QUANTISE:
            continue
        if node.op != DEQUANTISE:
            nodes.append(node)
        elif (values := forms.array(node.inputs[0])) is not None:
            forms.constants[node.outputs[0]] = Constant(_real(forms, node, values), -1, is_node=False)
        else:
            nodes.append(_limited(forms, whole.get(node.inputs[0]), node))
    odd = [node for node in nodes if any(name in whole for name in node.inputs)]
    if odd or graph.output in whole:
        raise NotUnderstood(
            f"expected whole numbers between {QUANTISE} and {DEQUANTISE} only, got {odd[0] if odd else 'an output'}; "
            "quantise in the QDQ format or hand in the float32 model"
        )
    used = {name for node in nodes for name in node.inputs}
    constants = {name: constant for name, constant in forms.constants.items() if name in used}
    changes = (*graph.changes, "quantised activations are limited and not rounded")
    return replace(graph, nodes=tuple(nodes), constants=constants, changes=changes)


def _real(forms: Forms, node: Node, values: np.ndarray) -> np.ndarray:
    scale, zero = _grid(forms, node)
    if node.attributes.get("block_size", 0):
        raise _refused(node, "a scale for the whole tensor or for each place of an axis", "one for each block")
    if scale.size > 1:
        axis = node.attributes.get("axis", 1)
        if not isinstance(axis, int) or not -values.ndim <= axis < values.ndim or scale.shape != (values.shape[axis],):
            raise _refused(node, f"a scale for each place of axis {axis} of {values.shape}", f"{scale.shape}")
        shape = [1] * values.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero.reshape(())
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    return np.asarray((values.astype(np.int64) - zero.astype(np.int64)).astype(np.float32) * scale, np.float32)


def _limited(forms: Forms, before: Node | None, node: Node) -> Node:
    if before is None:
        raise _refused(node, f"the result of {QUANTISE} or constants", "something else")
    (scale, zero), (scale_before, zero_before) = _grid(forms, node), _grid(forms, before)
    same = np.array_equal(scale, scale_before) and np.array_equal(zero, zero_before) and zero.dtype == zero_before.dtype
    if not same or scale.size != 1:
        raise _refused(node, f"one scale and zero point, those of {before}", "others")
    kind, step, nought = np.iinfo(zero.dtype), float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
    limits = [
        forms.held(node.outputs[0], np.array((bound - nought) * step, np.float32)) for bound in (kind.min, kind.max)
    ]
    return forms.node(node, "Clip", (before.inputs[0], *limits), node.outputs[0])


def _grid(forms: Forms, node: Node) -> tuple[np.ndarray, np.ndarray]:
    scale = forms.array(node.inputs[1])
    zero: np.ndarray | None = np.zeros((), np.uint8)
    if len(node.inputs) > 2 and node.inputs[2]:
        zero = forms.array(node.inputs[2])
    elif node.op == DEQUANTISE and (values := forms.array(node.inputs[0])) is not None:
        zero = np.zeros((), values.dtype)
    if (
        scale is None
        or zero is None
        or scale.dtype != np.float32
        or zero.dtype.kind not in "iu"
        or not (scale > 0).all()
    ):
        raise _refused(node, "a constant positive scale and a whole zero point", "others")
    if zero.size != 1 and zero.shape != scale.shape:
        raise _refused(node, f"zero points of shape {scale.shape}", f"{zero.shape}")
    return scale, zero


def _refused(node: Node, expected: str, got: str) -> NotUnderstood:
    return NotUnderstood(f"expected {expected} for {node}, got {got}; hand in the float32 model")

"""A graph with its shapes settled: constants folded, shape arithmetic gone, every operator in one opset.

The graph is walked with batches of two sizes. What an operator computes from constants and shapes is computed for both:
what is the same for both is a constant, and what grows with the batch may only be the free size of a new shape. So no
number computed from a shape is left, and the batch is free. Source: ONNX operator specifications, opset 21.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from vetgate.errors import NotUnderstood
from vetgate.formats.manifest import MAX_BYTES
from vetgate.formats.onnx.folding.arrangement import shape_of
from vetgate.formats.onnx.folding.fold import fold
from vetgate.formats.onnx.graph import Graph
from vetgate.formats.onnx.nodes import Constant, Node
from vetgate.formats.onnx.pieces import pieces
from vetgate.formats.onnx.rewriting.ranges import check_ranges
from vetgate.formats.onnx.rewriting.rounding import check_rounding
from vetgate.formats.onnx.rewriting.rules import rewrite
from vetgate.formats.onnx.rewriting.sizes import check_sizes
from vetgate.formats.onnx.rewriting.walk import BATCHES, OPSET, Array, Shape, Walk

TINY = np.finfo(np.float32).tiny


def settle(graph: Graph, image: Shape) -> tuple[Graph, dict[str, str]]:
    """The graph for images of shape `image` (C, H, W) in one opset, and which value there each name of the file means.

    Raises NotUnderstood for what cannot be settled, and for what runtimes compute in different ways.
    """
    walk = Walk(graph.input_dims[0])
    walk.constants = {name: _plain(c.value) for name, c in graph.constants.items()}
    walk.taken = {graph.input, *graph.constants, *(name for node in graph.nodes for name in node.outputs)}
    start = graph.input
    zeros = tuple(torch.zeros(batch, *image) for batch in BATCHES)
    walk.tensors[start], walk.shapes[start] = zeros, tuple(tuple(value.shape) for value in zeros)
    waiting = Counter(name for node in graph.nodes for name in node.inputs) + Counter([graph.output])
    with torch.no_grad():
        for node in graph.nodes:
            before = len(walk.tensors)
            _settle_node(walk, node, graph.opset)
            _forget(walk, node, waiting, [*islice(reversed(walk.tensors), len(walk.tensors) - before)])
    output = walk.root(graph.output)
    if output not in walk.made_by:
        raise NotUnderstood("expected an output computed from the input, got one that is not; export the model again")
    names = {name: walk.root(node.outputs[0]) for node in graph.nodes for name in (node.name, *node.outputs) if name}
    settled = _finished(walk, start, image, output)
    check_rounding(settled, {name: len(shapes[0]) for name, shapes in walk.shapes.items()})
    check_ranges(settled)
    return settled, names


def _plain(value: Array) -> Array:
    # numbers so small that some runtimes take them for zero are zero
    if value.dtype != np.float32:
        return value
    if not any(bool(_small(piece).any()) for piece in pieces(value)):
        return value
    if value.size == 1:
        raise NotUnderstood(
            f"expected a number that every runtime keeps, got {float(value.reshape(-1)[0]):.2g}, which some take for "
            "zero; export the model without it"
        )
    made = value.copy()
    for piece in pieces(made):
        piece[_small(piece)] = 0
    return made


def _small(piece: Array) -> Array:
    small: Array = (piece != 0) & (np.abs(piece) < TINY)
    return small


def _settle_node(walk: Walk, node: Node, opset: int) -> None:
    roots = [walk.root(name) for name in node.inputs]
    live = [name for name in roots if name in walk.tensors or name in walk.shapes]
    if node.op in ("Shape", "Size") and live:
        values = tuple(
            shape_of(node, shape) if node.op == "Shape" else np.array(math.prod(shape), np.int64)
            for shape in walk.shapes[roots[0]]
        )
        _keep(walk, node, [(value,) for value in values])
        return
    rewrite(walk, node, opset, folded=not live)
    if not live:
        each = [[_at(walk, name, place) for name in roots] for place in range(len(BATCHES))]
        if any(name in walk.numbers for name in roots):
            pairs = zip(*each, strict=True)
            check_sizes(node, [None if pair[0] is None else pair for pair in pairs], BATCHES)
            _keep(walk, node, [fold(node, given, opset) for given in each])
        else:
            _keep(walk, node, [fold(node, each[0], opset)] * len(BATCHES))


def _at(walk: Walk, name: str, place: int) -> Array | None:
    if not name:
        return None
    return walk.numbers[name][place] if name in walk.numbers else walk.constants[name]


def _keep(walk: Walk, node: Node, made: Sequence[tuple[Array, ...]]) -> None:
    for place, name in enumerate(node.outputs):
        if not name:
            continue
        values = tuple(each[place] for each in made)
        walk.folded += sum(value.nbytes for value in values)
        if walk.folded > MAX_BYTES:
            raise NotUnderstood(
                f"expected at most {MAX_BYTES} bytes of constants computed beforehand, got more at {node}; simplify it"
            )
        if all(value.shape == values[0].shape and np.array_equal(value, values[0]) for value in values[1:]):
            walk.constants[name] = values[0]
        else:
            walk.numbers[name] = values


def _forget(walk: Walk, node: Node, waiting: Counter[str], made: Sequence[str]) -> None:
    # activations are let go once nothing waits for them, shapes are not; `made` are those that the node has added
    for name in filter(None, node.outputs):
        root = walk.root(name)
        if root != name:
            waiting[root] += waiting[name]
    taken = [walk.root(name) for name in node.inputs if name]
    for name in taken:
        waiting[name] -= 1
    for name in {*taken, *made}:
        if waiting[name] <= 0:
            walk.tensors.pop(name, None)


def _finished(walk: Walk, start: str, image: Shape, output: str) -> Graph:
    needed, nodes = {output}, []
    for node in reversed(walk.nodes):
        if node.outputs[0] in needed:
            needed.update(filter(None, node.inputs))
            nodes.append(node)
    if start not in needed:
        raise NotUnderstood("expected an output computed from the input, got one that is not; export the model again")
    nodes = [replace(node, position=i) for i, node in enumerate(nodes[::-1])]
    held = [name for name in walk.constants if name in needed]
    constants = {name: Constant(walk.constants[name], i, is_node=False) for i, name in enumerate(held)}
    shape = walk.shapes[output][0]
    return Graph(tuple(nodes), constants, start, (None, *image), output, (None, *shape[1:]), OPSET)

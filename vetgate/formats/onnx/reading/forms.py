"""One form for what ONNX can say in several: products with factors, operators that others stand for, old ones.

Each rule turns one node into others that compute the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.nodes import Constant, Node, Value, check_factors

FIRST = 11  # from this opset on Resize says where new pixels lie
_NUMBERS = {np.dtype(np.float32): 1, np.dtype(np.int32): 6, np.dtype(np.int64): 7, np.dtype(np.bool_): 9}


@dataclass
class Forms:
    """Rewrites nodes one after the other; `constants` gets what the new nodes need, `next` numbers them."""

    opset: int
    constants: dict[str, Constant]
    next: int
    taken: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def rewrite(self, nodes: Iterable[Node]) -> list[Node]:
        """The same computation; raises NotUnderstood for a form that has no other."""
        return [new for node in nodes for new in RULES.get(node.op, _same)(self, node)]

    def array(self, name: str) -> np.ndarray | None:
        """The constant of this name, or None for what is computed."""
        return self.constants[name].value if name in self.constants else None

    def held(self, name: str, value: np.ndarray) -> str:
        """A new constant, under a name like `name`."""
        name = self.fresh(name)
        self.constants[name] = Constant(value, -1, is_node=False)
        return name

    def fresh(self, name: str) -> str:
        """A name like `name` that nothing has."""
        while (found := f"{name}.{self.counts[name]}") in self.taken or found in self.constants:
            self.counts[name] += 1
        self.taken.add(found)
        return found

    def node(
        self, like: Node, op: str, inputs: Iterable[str], output: str, attributes: Mapping[str, Value] | None = None
    ) -> Node:
        """A node that stands for a part of `like`."""
        self.next += 1
        return Node(self.next, like.name, op, tuple(inputs), (output,), attributes or {})


def _same(forms: Forms, node: Node) -> list[Node]:
    return [node]


def _mean(forms: Forms, node: Node) -> list[Node]:
    total = forms.node(node, "Sum", node.inputs, forms.fresh(node.outputs[0]))
    count = forms.held(node.outputs[0], np.array(len(node.inputs), np.float32))
    return [total, forms.node(node, "Div", (total.outputs[0], count), node.outputs[0])]


def _gemm(forms: Forms, node: Node) -> list[Node]:
    # x W + b with a constant matrix stays one operator, its factors in the weights; what is left becomes its parts
    check_factors(node)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    turned = [bool(node.attributes.get(name, 0)) for name in ("transA", "transB")]
    weights = forms.array(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    held = forms.array(bias) if bias else None
    made: list[Node] = []

    def then(op: str, *inputs: str, **attributes: Value) -> str:
        made.append(forms.node(node, op, inputs, forms.fresh(node.outputs[0]), attributes))
        return made[-1].outputs[0]

    first = then("Transpose", node.inputs[0], perm=(1, 0)) if turned[0] else node.inputs[0]
    if weights is None or weights.ndim != 2 or (bias and held is None):
        product = then("MatMul", first, then("Transpose", node.inputs[1], perm=(1, 0)) if turned[1] else node.inputs[1])
        if alpha != 1:
            product = then("Mul", product, forms.held(product, np.array(alpha, np.float32)))
        if bias:
            scaled = then("Mul", bias, forms.held(bias, np.array(beta, np.float32))) if beta != 1 else bias
            product = then("Add", product, scaled)
        last = made.pop()
        return [*made, forms.node(node, last.op, last.inputs, node.outputs[0], last.attributes)]
    width = weights.shape[0 if turned[1] else 1]
    matrix = node.inputs[1] if alpha == 1 else forms.held(node.inputs[1], _scaled(weights, alpha))
    if held is not None:
        if held.dtype != np.float32 or held.ndim > 2 or held.shape not in ((), (1,), (1, 1), (width,), (1, width)):
            raise _refused(node, f"a bias for each of {width} outputs", f"shape {held.shape}")
        if beta != 1 or held.shape not in ((width,), (1, width)):
            bias = forms.held(bias, np.broadcast_to(_scaled(held, beta).reshape(-1), (width,)).copy())
    if not made and (matrix, bias) == (node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else ""):
        return [node]
    inputs = (first, matrix, bias) if bias else (first, matrix)
    return [*made, forms.node(node, "Gemm", inputs, node.outputs[0], {"transB": int(turned[1])})]


def _scaled(value: np.ndarray, factor: Value) -> np.ndarray:
    return np.asarray(np.multiply(value, factor, dtype=np.float32))


def _cast_like(forms: Forms, node: Node) -> list[Node]:
    like = forms.array(node.inputs[1])
    if like is None or like.dtype not in _NUMBERS:
        raise _refused(node, "a constant of a number type to be like", "a computed tensor")
    return [forms.node(node, "Cast", node.inputs[:1], node.outputs[0], {"to": _NUMBERS[like.dtype]})]


def _resize(forms: Forms, node: Node) -> list[Node]:
    # before opset 11 there was one way to place the new pixels
    if node.op == "Resize" and forms.opset >= FIRST:
        return [node]
    if len(node.inputs) != 2:
        raise _refused(node, "scales", "none")
    mode = node.attributes.get("mode", "nearest")
    attributes: dict[str, Value] = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    if mode == "nearest":
        attributes["nearest_mode"] = "floor"
    region = forms.held(node.outputs[0], np.zeros(0, np.float32))
    return [forms.node(node, "Resize", (node.inputs[0], region, node.inputs[1]), node.outputs[0], attributes)]


def _refused(node: Node, expected: str, got: str) -> NotUnderstood:
    return NotUnderstood(f"expected {expected} for {node}, got {got}; export the model without it")


RULES: dict[str, Callable[[Forms, Node], list[Node]]] = {
    "Mean": _mean,
    "Gemm": _gemm,
    "CastLike": _cast_like,
    "Resize": _resize,
    "Upsample": _resize,
}

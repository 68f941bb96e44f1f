"""What is known of a graph's values while it is written anew, and one of its nodes with what goes into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.build import build
from vetgate.formats.onnx.folding.constants import refuse
from vetgate.formats.onnx.nodes import Node, Value
from vetgate.formats.onnx.operands import MAX_ELEMENTS, Operands, called
from vetgate.formats.onnx.rewriting.sizes import rows_alike

OPSET = 21
BATCHES = (2, 3)
Array = np.ndarray
Shape = tuple[int, ...]


@dataclass(eq=False)
class Walk:
    """What is known of the values of a graph while it is written anew, by name, for each of BATCHES.

    `constants` are the same for every batch, `numbers` are computed from shapes and are not, `tensors` are computed
    from the image. A value that is another one under a new name stands in `aliases`. `batch` is the size that the file
    fixes, or None; `folded` counts the bytes of constants that were computed.
    """

    batch: int | None = None
    constants: dict[str, Array] = field(default_factory=dict)
    numbers: dict[str, tuple[Array, ...]] = field(default_factory=dict)
    tensors: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[Shape, ...]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    made_by: dict[str, Node] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    folded: int = 0

    def root(self, name: str) -> str:
        """The name of the value that `name` is."""
        return self.aliases.get(name, name)

    def fresh(self, near: str) -> str:
        """A name that the graph has not got."""
        while (name := f"{near}/{self.counts[near]}") in self.taken:
            self.counts[near] += 1
        self.taken.add(name)
        return name

    def hold(self, near: str, value: Array) -> str:
        """A new constant; its name."""
        name = self.fresh(near)
        self.constants[name] = value
        return name

    def add(self, node: Node) -> None:
        """Append a node and compute what it gives for each batch; raises NotUnderstood."""
        data = frozenset(i for i, name in enumerate(node.inputs) if name in self.tensors)
        built = build(Operands(node, self.constants, data, OPSET))
        if set(built.inputs) != data:
            raise refuse(node, "its first inputs computed and the rest constant", f"computed inputs {sorted(data)}")
        module, values = built.module.eval(), []
        for place in range(len(BATCHES)):
            given = [self.tensors[node.inputs[i]][place] for i in built.inputs]
            value = _shaped(str(node), module, given, BATCHES[place])
            if not value.numel():
                raise NotUnderstood(f"expected at most {MAX_ELEMENTS} values from {node}, got 0")
            values.append(value)
        self.nodes.append(node)
        name = node.outputs[0]
        self.made_by[name] = node
        self.tensors[name], self.shapes[name] = tuple(values), tuple(tuple(v.shape) for v in values)


def _shaped(what: str, module: nn.Module, given: Sequence[Tensor], batch: int) -> Tensor:
    # of what the operators give only the shape counts, and convolutions, which cost the most, tell it by one image
    if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) or given[0].ndim != 4:
        return called(what, module, given, batch)
    one = called(what, module, [given[0][:1]], batch)
    return torch.from_numpy(np.zeros((len(given[0]), *one.shape[1:]), np.float32))


@dataclass(frozen=True, eq=False)
class Rewrite:
    """One node of a graph, and what its inputs are; what it is written as goes into the walk."""

    walk: Walk
    node: Node
    opset: int

    def given(self, index: int) -> bool:
        """Whether the node has this input at all."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def name(self, index: int) -> str:
        """The name of the value at this input, constants that differ by row with the batch made one row."""
        name = self.walk.root(self.node.inputs[index])
        if name not in self.walk.numbers:
            return name
        return self.walk.hold(self.result, self.row(index))

    def names(self) -> list[str]:
        """The names of the values at all inputs, empty where one is left out."""
        return [self.name(i) if self.given(i) else "" for i in range(len(self.node.inputs))]

    def row(self, index: int) -> Array:
        """The one row of numbers that are the same for each image of a batch, with an axis for the batch."""
        pair = self.walk.numbers[self.walk.root(self.node.inputs[index])]
        if pair[0].dtype != np.float32 or not rows_alike(pair, BATCHES):
            raise self.refuse("no number that depends on the batch size", f"one as input {index}")
        row: Array = pair[0][:1]
        return row

    def constant(self, index: int) -> Array | None:
        """The constant at this input, or None where it is left out; refuses anything else."""
        if not self.given(index):
            return None
        name = self.walk.root(self.node.inputs[index])
        if name not in self.walk.constants:
            raise self.refuse(f"a constant as input {index}", "one that is computed, or depends on the batch size")
        return self.walk.constants[name]

    def either(self, index: int) -> tuple[Array, ...]:
        """The constant at this input, or the numbers that depend on the batch, for each of BATCHES."""
        name = self.walk.root(self.node.inputs[index])
        if name in self.walk.numbers:
            return self.walk.numbers[name]
        value = self.constant(index)
        if value is None:
            raise self.refuse(f"a constant as input {index}", "none")
        return (value,) * len(BATCHES)

    def shapes(self, index: int = 0) -> tuple[Shape, ...]:
        """The shapes of the computed value at this input for each of BATCHES."""
        name = self.walk.root(self.node.inputs[index])
        if name not in self.walk.shapes:
            raise self.refuse(f"a computed value as input {index}", "a constant")
        return self.walk.shapes[name]

    @property
    def result(self) -> str:
        """The name of what the node gives."""
        return self.node.outputs[0]

    @property
    def rank(self) -> int:
        """The number of axes of the first input."""
        return len(self.shapes()[0])

    def grows(self, axis: int) -> bool:
        """Whether this axis of the first input holds one image after the other."""
        one, two = self.shapes()
        return one[axis] != two[axis]

    def axis(self, default: int) -> int:
        """The axis of the first input that the node names, counted from the front."""
        axis = self.integer("axis", default)
        if not -self.rank <= axis < self.rank:
            raise self.refuse(f"an axis of {self.rank}", str(axis))
        return axis % self.rank

    def integer(self, name: str, default: int) -> int:
        """A whole-number attribute."""
        value = self.node.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def real(self, name: str, default: float) -> float:
        """A number as attribute."""
        value = self.node.attributes.get(name, default)
        return value if isinstance(value, float) else default

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        return str(self.node.attributes.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers as attribute, or None."""
        value = self.node.attributes.get(name)
        return [int(v) for v in value] if isinstance(value, tuple) else None

    def hold(self, value: Array) -> str:
        """A new constant; its name."""
        return self.walk.hold(self.result, value)

    def write(
        self, op: str, inputs: Sequence[str], attributes: Mapping[str, Value] | None = None, *, output: str = ""
    ) -> str:
        """Write a node of opset 21, its last inputs left out where they are empty; the name of what it gives."""
        taken = list(inputs)
        while taken and not taken[-1]:
            taken.pop()
        name = output or self.walk.fresh(self.result)
        node = Node(len(self.walk.nodes), self.node.name, op, tuple(taken), (name,), dict(attributes or {}))
        self.walk.add(node)
        return name

    def transposed(self, source: str, perm: Sequence[int], *, output: str = "") -> str:
        """Write a Transpose, one in place of two in a row and none where the axes stay; the name of what it gives."""
        maker = self.walk.made_by.get(source)
        before = maker.attributes["perm"] if maker is not None and maker.op == "Transpose" else None
        if maker is not None and isinstance(before, tuple):
            # what the first one took may be let go already
            back = np.argsort(before).tolist()
            self.walk.tensors[maker.inputs[0]] = tuple(value.permute(back) for value in self.walk.tensors[source])
            source, perm = maker.inputs[0], [int(before[place]) for place in perm]
        if list(perm) == sorted(perm):
            return source
        return self.write("Transpose", [source], {"perm": tuple(perm)}, output=output)

    def refuse(self, expected: str, got: str) -> NotUnderstood:
        """The error for something about this node."""
        return refuse(self.node, expected, got)

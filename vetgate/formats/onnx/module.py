"""A graph as a torch module: every operator a named submodule, every weight a parameter, gradients to the input."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.build import build
from vetgate.formats.onnx.graph import Graph, Node
from vetgate.formats.onnx.operands import Built, Operands, Parameters, Slot
from vetgate.formats.onnx.weights import flat_parameter, linear

# the last operator that makes probabilities of logits, in the order that these have
SQUASHING = ("Softmax", "LogSoftmax", "Sigmoid")
TAIL = ("Identity", "Flatten", "Squeeze", "Reshape", "Dropout")
INPUT = "input"


@dataclass(frozen=True)
class Step:
    """Call the submodule `name` on `inputs`, keep the result as `output`, then forget `done`."""

    name: str
    node: str
    inputs: tuple[str, ...]
    output: str
    done: tuple[str, ...]


class OnnxModule(nn.Module):
    """The network of an ONNX graph."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.slots: dict[str, list[Slot]] = {}
        self.aliases: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self.image = ""
        self.result = ""
        self.stripped: str | None = None
        self.stripped_axis = 0
        # a layer too: what enters a network of one linear map
        self.input = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1].

        A submodule whose `forward` was set on the instance gives its output without being asked for anything: it is
        called with no inputs, and what would only have made those is not computed.
        """
        values: dict[str, Tensor] = {self.image: self.input(x)}
        for step in self._wanted():
            values[step.output] = self._modules[step.name](*[values[name] for name in step.inputs])  # type: ignore[misc]
            for name in step.done:
                del values[name]
        return values[self.result]

    def _wanted(self) -> list[Step]:
        answered = {step.name for step in self.steps if "forward" in vars(self._modules[step.name])}
        if not answered:
            return self.steps
        needed, found = {self.result}, []
        for step in reversed(self.steps):
            if step.output in needed:
                inputs = () if step.name in answered else step.inputs
                needed.update(inputs)
                found.append(replace(step, inputs=inputs))
        return _forgetting(found[::-1], self.result)

    def append(self, node: Node, built: Built, inputs: tuple[str, ...], output: str) -> str:
        """Add a module under a name made from the node's; returns that name."""
        name = re.sub(r"\W+", "_", node.name, flags=re.ASCII).strip("_") or f"{node.op.lower()}_{node.position}"
        name = self._free(name if name.isidentifier() else f"{node.op.lower()}_{name}")
        self.add_module(name, built.module)
        self.steps.append(Step(name, str(node), inputs, output, ()))
        self.slots[name] = list(built.slots)
        for alias in (node.name, output):
            self.aliases.setdefault(alias, name)
        return name

    def _free(self, wanted: str) -> str:
        # a name that is taken gets a line, and then a number, which goes on where it was for the one before
        name = wanted
        while name in self._modules or hasattr(self, name):
            self._counts[wanted] += 1
            name = f"{wanted}_" if self._counts[wanted] == 1 else f"{wanted}_{self._counts[wanted]}"
        return name

    def find(self, layer: str) -> str | None:
        """Name of the submodule called `layer`, or of the one made from the node or output of that name."""
        return layer if layer in self._modules else self.aliases.get(layer)

    def finish(self, image: str, result: str) -> None:
        """Name input and output, and note after which step each value is last used."""
        self.image, self.result = image, result
        self.steps = _forgetting(self.steps, result)


def _forgetting(steps: list[Step], result: str) -> list[Step]:
    # the same steps, each forgetting what is not used after it
    last = {name: i for i, step in enumerate(steps) for name in step.inputs}
    return [
        replace(step, done=tuple(sorted({name for name in step.inputs if last[name] == i and name != result})))
        for i, step in enumerate(steps)
    ]


def build_module(graph: Graph, *, strip: bool = True) -> OnnxModule:
    """The module of a settled graph, a final softmax or sigmoid left out if `strip`.

    Its weights lie where the graph's do: whoever changes them has no other use for the graph. Raises NotUnderstood for
    what has no exact meaning in torch.
    """
    constants = {name: c.value for name, c in graph.constants.items()}
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    biases = _biases(graph, constants, uses)
    module = OnnxModule()
    parameters = Parameters()
    after_weights: set[str] = set()
    fused = {add.position for add, _ in biases.values()}
    for node in graph.nodes:
        if node.position in fused:
            continue
        data = frozenset(i for i, name in enumerate(node.inputs) if name and name not in constants)
        trained = any(node.inputs[i] in after_weights for i in data)
        batch = graph.input_dims[0]
        operands = Operands(node, constants, data, graph.opset, batch, trained, parameters)
        output = node.outputs[0]
        if node.position in biases:
            add, index = biases[node.position]
            output = add.outputs[0]
            built = _linear_with_bias(operands, add, index, parameters)
        else:
            built = build(operands)
        if set(built.inputs) != data:
            raise operands.refuse("its first inputs computed and the rest constant", f"computed inputs {sorted(data)}")
        name = module.append(node, built, tuple(node.inputs[i] for i in built.inputs), output)
        if node.position in biases:
            module.aliases.setdefault(biases[node.position][0].name, name)
        module.aliases.setdefault(node.outputs[0], name)
        if trained or next(built.module.parameters(), None) is not None:
            after_weights.add(output)
    module.finish(graph.input, graph.output)
    if strip:
        _strip_softmax(graph, module)
    return module.eval()


def default_layer(module: OnnxModule) -> str:
    """Name of the submodule whose output enters the last linear map."""
    made_by = {step.output: step.name for step in module.steps} | {module.image: INPUT}
    for kind in (nn.Linear, nn.Conv2d):
        for step in reversed(module.steps):
            if isinstance(module.get_submodule(step.name), kind):
                return made_by[step.inputs[0]]
    raise NotUnderstood(
        "expected a linear map in the graph, got none; name the layer of the features in submission.yaml"
    )


def _biases(graph: Graph, constants: dict[str, np.ndarray], uses: Counter[str]) -> dict[int, tuple[Node, int]]:
    # MatMul by a matrix, then Add of a vector, is one linear layer: MatMul's position -> (the Add, where its vector is)
    readers = {name: node for node in graph.nodes for name in node.inputs}
    found: dict[int, tuple[Node, int]] = {}
    for node in graph.nodes:
        if node.op != "MatMul" or node.inputs[0] in constants or node.inputs[1] not in constants:
            continue
        output, matrix = node.outputs[0], constants[node.inputs[1]]
        add = readers.get(output)
        if add is None or add.op != "Add" or uses[output] != 1 or output == graph.output or matrix.ndim != 2:
            continue
        index = 1 - add.inputs.index(output)
        vector = constants.get(add.inputs[index])
        width = matrix.shape[1]
        if vector is not None and vector.dtype == np.float32 and vector.shape in ((width,), (1, width)):
            found[node.position] = (add, index)
    return found


def _linear_with_bias(operands: Operands, add: Node, index: int, parameters: Parameters) -> Built:
    other = Operands(add, operands.constants, frozenset({1 - index}), operands.opset, parameters=parameters)
    return linear(operands, transposed=True, bias=flat_parameter(other, index), slot=other.slot("bias", index))


def _strip_softmax(graph: Graph, module: OnnxModule) -> None:
    by_output = {node.outputs[0]: node for node in graph.nodes}
    uses = Counter(name for step in module.steps for name in step.inputs)
    node = by_output[graph.output]
    while node.op in TAIL and node.inputs[0] in by_output and uses[node.inputs[0]] == 1:
        node = by_output[node.inputs[0]]
    if node.op in SQUASHING:
        module.stripped = next(step.name for step in module.steps if step.output == node.outputs[0])
        # a sigmoid has none: each class is squashed by itself
        axis = 1 if node.op == "Sigmoid" else node.attributes.get("axis", 1 if graph.opset < 13 else -1)
        module.stripped_axis = axis if isinstance(axis, int) else 0
        module.add_module(module.stripped, nn.Identity())

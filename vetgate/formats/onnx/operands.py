"""A node with what is known of its inputs, and what an operator's meaning is returned as."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.nodes import Node

# of one value that is computed
MAX_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class Slot:
    """Where a module's tensor comes from: an input of a node, transposed or not."""

    tensor: str
    node: int
    index: int
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Built:
    """A module, the node inputs it is called with in that order, and the tensors it took from the file."""

    module: nn.Module
    inputs: tuple[int, ...]
    slots: tuple[Slot, ...] = ()


class Pointwise(nn.Module):
    """A function of one tensor and nothing else."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function's value."""
        return self.function(x)


@dataclass(frozen=True, eq=False)
class Parameters:
    """The parameters of one module: a tensor that is used twice is one of them, and no two have memory in common.

    They take over the memory of the constants they are made of, where that can be.
    """

    made: dict[tuple[str, bool], nn.Parameter] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)

    def of(self, name: str, value: np.ndarray, *, transposed: bool) -> nn.Parameter:
        """The constant of this name as a parameter."""
        key = (name, transposed)
        if key not in self.made:
            self.made[key] = nn.Parameter(self._turned(value) if transposed else self._own(value))
        return self.made[key]

    def _own(self, value: np.ndarray) -> Tensor:
        owner = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        fit = value.flags.c_contiguous and value.flags.aligned and value.flags.writeable and owner.flags.owndata
        if not fit or id(owner) in self.taken:
            return tensor(value)
        self.taken.add(id(owner))
        return torch.from_numpy(value)

    def _turned(self, value: np.ndarray) -> Tensor:
        given = torch.from_numpy(value) if value.flags.writeable else tensor(value)
        turned = given.T.contiguous()
        return turned.clone() if turned.data_ptr() == given.data_ptr() else turned


@dataclass(frozen=True, eq=False)
class Operands:
    """A node and what is known of its inputs.

    `data` are the inputs that are computed; the rest are constants. `batch` is the batch size that the file fixes, or
    None. `trained` is whether weights come before: a constant after them is a weight too, one before is preprocessing.
    """

    node: Node
    constants: Mapping[str, np.ndarray]
    data: frozenset[int]
    opset: int
    batch: int | None = None
    trained: bool = False
    parameters: Parameters = field(default_factory=Parameters)

    def given(self, index: int) -> bool:
        """Whether the node has this input at all."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def constant(self, index: int) -> np.ndarray:
        """The constant at this input; refuses a computed one."""
        if index in self.data or not self.given(index):
            raise self.refuse(f"a constant as input {index}", "a computed one")
        return self.constants[self.node.inputs[index]]

    def weight(self, index: int, rank: int | None = None) -> np.ndarray:
        """The float32 constant at this input."""
        value = self.constant(index)
        if value.dtype != np.float32 or (rank is not None and value.ndim != rank):
            raise self.refuse(
                f"float32 weights{'' if rank is None else f' of rank {rank}'} as input {index}",
                f"{value.dtype} of shape {value.shape}",
            )
        return value

    def parameter(self, index: int, *, transposed: bool = False) -> nn.Parameter:
        """The weights at this input as a parameter; the same tensor used twice stays one parameter."""
        return self.parameters.of(self.node.inputs[index], self.weight(index), transposed=transposed)

    def whole(self, index: int) -> list[int]:
        """The constant whole numbers at this input."""
        value = self.constant(index)
        if value.dtype not in (np.int64, np.int32) or value.ndim > 1 or value.size > 64:
            raise self.refuse(f"a list of whole numbers as input {index}", f"{value.dtype} of shape {value.shape}")
        return [int(v) for v in value.reshape(-1)]

    def number(self, index: int, default: float) -> float:
        """The constant number at this input, or the default where it is left out."""
        if not self.given(index):
            return default
        value = self.constant(index)
        if value.size != 1:
            raise self.refuse(f"one number as input {index}", f"shape {value.shape}")
        return float(value.reshape(-1)[0])

    def integer(self, name: str, default: int) -> int:
        """A whole-number attribute."""
        value = self.node.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def real(self, name: str, default: float) -> float:
        """A finite attribute."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, float) or not math.isfinite(value):
            raise self.refuse(f"a finite {name}", str(value))
        return value

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        return str(self.node.attributes.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers as attribute, or None."""
        value = self.node.attributes.get(name)
        return [int(v) for v in value] if isinstance(value, tuple) else None

    def axes(self) -> list[int] | None:
        """Axes, an attribute in older opsets and an input in newer ones, or None."""
        named = self.integers("axes")
        return named if named is not None else self.whole(1) if self.given(1) else None

    def slot(self, tensor: str, index: int, *, transposed: bool = False) -> Slot:
        """A slot of this node."""
        return Slot(tensor, self.node.position, index, transposed)

    def refuse(self, expected: str, got: str) -> NotUnderstood:
        """The error for something about this node."""
        return NotUnderstood(f"expected {expected} for {self.node}, got {got}; export the model without it")


def called(what: str, module: nn.Module, given: Sequence[Tensor], batch: int) -> Tensor:
    """What the module of an operator gives for so many images; raises NotUnderstood where it takes no such inputs."""
    try:
        value: Tensor = module(*given)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise NotUnderstood(
            f"expected {what} to take {[tuple(g.shape) for g in given]} for a batch of {batch} images, got: "
            f"{str(error)[:200]}; export the model with a free batch size and this input_shape"
        ) from error
    if value.numel() > MAX_ELEMENTS:
        raise NotUnderstood(f"expected at most {MAX_ELEMENTS} values from {what}, got {value.numel()}")
    return value


def tensor(value: np.ndarray) -> Tensor:
    """A copy of an array as a tensor."""
    return torch.from_numpy(value.copy())

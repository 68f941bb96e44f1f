"""Linear maps, normalisation and arithmetic: operators whose constants are weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vetgate.formats.onnx.operands import Built, Operands, Slot, tensor


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over axis 1 of vectors or images, as ONNX has only one of them."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")


class Arithmetic(nn.Module):
    """A broadcast operation on two tensors, one of which may be held here, first or second."""

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], constant: Tensor | None, first: bool, trained: bool
    ) -> None:
        super().__init__()
        self.function, self.first = function, first
        if trained and constant is not None:
            self.constant: Tensor | None = nn.Parameter(constant)
        else:
            self.register_buffer("constant", constant)

    def forward(self, *given: Tensor) -> Tensor:
        """The operation on the tensor held and the one given, or on the two given."""
        if self.constant is None:
            return self.function(given[0], given[1])
        return self.function(self.constant, given[0]) if self.first else self.function(given[0], self.constant)


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), the slope being of any shape that broadcasts to x."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        return torch.where(x < 0, self.weight * x, x)


def linear(o: Operands, *, transposed: bool, bias: nn.Parameter | None, slot: Slot | None) -> Built:
    """A linear map by the matrix at input 1, whose file layout is (in, out) where it is `transposed`."""
    weight = o.parameter(1, transposed=transposed)
    if not weight.numel() or (bias is not None and bias.shape != weight.shape[:1]):
        raise o.refuse("a bias that fits the matrix", f"matrix {tuple(weight.shape)}")
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    module.weight = weight
    slots = [o.slot("weight", 1, transposed=transposed)]
    if bias is not None and slot is not None:
        module.bias = bias
        slots.append(slot)
    return Built(module, (0,), tuple(slots))


def flat_parameter(o: Operands, index: int) -> nn.Parameter:
    """The weights at this input as a parameter of one axis."""
    if o.weight(index).ndim == 1:
        return o.parameter(index)
    return nn.Parameter(torch.from_numpy(o.weight(index).copy().reshape(-1)))


def gemm(o: Operands) -> Built:
    if o.integer("transA", 0) or o.real("alpha", 1.0) != 1 or o.real("beta", 1.0) != 1:
        raise o.refuse("transA 0 and alpha and beta 1", "others")
    o.weight(1, rank=2)
    transposed = not o.integer("transB", 0)
    bias = None
    if o.given(2):
        width = o.weight(1).shape[1 if transposed else 0]
        if o.weight(2).size != width or o.weight(2).shape not in ((width,), (1, width)):
            raise o.refuse(f"a bias of {width}", f"shape {o.weight(2).shape}")
        bias = flat_parameter(o, 2)
    return linear(o, transposed=transposed, bias=bias, slot=o.slot("bias", 2) if bias is not None else None)


def matmul(o: Operands) -> Built:
    if o.data == {0} and o.weight(1).ndim == 2:
        return linear(o, transposed=True, bias=None, slot=None)
    return arithmetic(o)


def batch_norm(o: Operands) -> Built:
    if o.integer("training_mode", 0):
        raise o.refuse("inference mode", "training_mode 1")
    width = o.weight(1, rank=1).shape[0]
    if not width or any(o.weight(i).shape != (width,) for i in (2, 3, 4)):
        raise o.refuse(f"four vectors of {width}", f"{[o.weight(i).shape for i in (2, 3, 4)]}")
    epsilon, momentum = o.real("epsilon", 1e-5), o.real("momentum", 0.9)
    if epsilon < 0 or not 0 <= momentum <= 1 or bool((o.weight(4) < 0).any()):
        raise o.refuse("a variance and epsilon >= 0 and a momentum in [0, 1]", "others")
    module = BatchNorm(width, epsilon, 1 - momentum, device="meta")
    module.weight, module.bias = o.parameter(1), o.parameter(2)
    module.running_mean, module.running_var = tensor(o.weight(3)), tensor(o.weight(4))
    module.num_batches_tracked = torch.tensor(0)
    names = ("weight", "bias", "running_mean", "running_var")
    return Built(module, (0,), tuple(o.slot(name, i) for i, name in enumerate(names, start=1)))


def prelu(o: Operands) -> Built:
    return Built(PReLU(o.parameter(1)), (0,), (o.slot("weight", 1),))


def arithmetic(o: Operands) -> Built:
    function = _FUNCTIONS[o.node.op]
    if len(o.node.inputs) == 1:
        return Built(nn.Identity(), (0,))
    if len(o.node.inputs) != 2:
        raise o.refuse("two inputs", str(len(o.node.inputs)))
    if len(o.data) == 2:
        return Built(Arithmetic(function, None, first=False, trained=False), (0, 1))
    held = 1 if 0 in o.data else 0
    value = o.constant(held)
    trained = o.trained and value.dtype == np.float32 and value.size > 1
    module = Arithmetic(function, tensor(value), first=held == 0, trained=trained)
    return Built(module, (1 - held,), (o.slot("constant", held),))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() or b.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
    "Pow": torch.pow,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "MatMul": torch.matmul,
}

"""Normalisation over the values of one image: over its last axes, each channel, or groups of channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.formats.onnx.operands import Built, Operands, Slot


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the axes from `axis` on."""

    def __init__(self, axis: int, epsilon: float, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.axis, self.epsilon, self.weight, self.bias = axis, epsilon, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        shape = x.shape[self.axis :]
        if not -x.ndim <= self.axis < x.ndim or self.weight.shape != shape:
            raise ValueError(f"expected weights of shape {tuple(shape)}, got {tuple(self.weight.shape)}")
        return F.layer_norm(x, shape, self.weight, self.bias, self.epsilon)


class InstanceNorm(nn.Module):
    """Normalisation of each channel of each image by itself."""

    def __init__(self, epsilon: float, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.epsilon, self.weight, self.bias = epsilon, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x (B, C, ...)."""
        # as groups of one channel: torch refuses to normalise one value by itself, which ONNX does not
        return F.group_norm(x, self.weight.shape[0], self.weight, self.bias, self.epsilon)


def layer_norm(o: Operands) -> Built:
    if o.integer("stash_type", 1) != 1:
        raise o.refuse("stash_type 1", "another")
    bias = o.parameter(2) if o.given(2) else None
    if bias is not None and bias.shape != o.weight(1).shape:
        raise o.refuse(f"a bias of shape {o.weight(1).shape}", f"{tuple(bias.shape)}")
    module = LayerNorm(o.integer("axis", -1), _epsilon(o), o.parameter(1), bias)
    return Built(module, (0,), _slots(o, 2 if bias is not None else 1))


def instance_norm(o: Operands) -> Built:
    _channels(o)
    return Built(InstanceNorm(_epsilon(o), o.parameter(1), o.parameter(2)), (0,), _slots(o, 2))


def group_norm(o: Operands) -> Built:
    width, groups = _channels(o), o.integer("num_groups", 0)
    if groups < 1 or width % groups or o.integer("stash_type", 1) != 1:
        raise o.refuse(f"groups that divide {width} channels", str(groups))
    module = nn.GroupNorm(groups, width, _epsilon(o), device="meta")
    module.weight, module.bias = o.parameter(1), o.parameter(2)
    return Built(module, (0,), _slots(o, 2))


def _channels(o: Operands) -> int:
    width = int(o.weight(1, rank=1).shape[0])
    if not width or o.weight(2).shape != (width,):
        raise o.refuse(f"two vectors of {width}", f"{o.weight(2).shape}")
    return width


def _epsilon(o: Operands) -> float:
    value = o.real("epsilon", 1e-5)
    if value < 0:
        raise o.refuse("an epsilon >= 0", str(value))
    return value


def _slots(o: Operands, count: int) -> tuple[Slot, ...]:
    return tuple(o.slot(name, i) for i, name in enumerate(("weight", "bias")[:count], start=1))

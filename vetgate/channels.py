"""Channels that a repair can silence: what a convolution or linear map gives, through the normalisation behind it.

A filter that is zero is not silent while a normalisation adds its shift; so both are set to zero. A normalisation is a
filter's own where it takes what the filter gives as it is; one that takes a sum belongs to no filter. One that measures
several channels together, as GroupNorm does, would give the others other values for a filter that is zero: there scale
and shift alone are set to zero. A layer whose own normalisation has neither cannot be silenced, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vetgate.errors import DefenceError
from vetgate.probe import images_at_once, module_at

# images of one pass
BATCH = 256


@dataclass(frozen=True)
class FilterLayer:
    """A convolution or linear map by its name, and the normalisation of its own, if it has one."""

    matrix: str
    norm: str | None

    @property
    def last(self) -> str:
        """The module that gives the layer's output."""
        return self.norm or self.matrix


@torch.no_grad()
def layers_of(model: nn.Module, x: Tensor) -> list[FilterLayer]:
    """The layers in the order in which they run on images x (N, C, H, W), without the one that gives the logits.

    What runs several times is left out. Raises DefenceError where nothing is left.
    """
    ran: list[tuple[str, nn.Module, Any, Any]] = []
    handles = [
        module.register_forward_hook(lambda m, given, out, name=name: ran.append((name, m, given[0], out)))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        model(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, *_ in ran]
    once = [entry for entry in ran if names.count(entry[0]) == 1]
    found = []
    for name, module, _, out in once:
        if isinstance(module, nn.Conv2d | nn.Linear):
            takers = [(other, m) for other, m, given, _ in once if given is out]
            norms = [(other, m) for other, m in takers if _normalises(m)]
            own = norms[0] if len(norms) == len(takers) == 1 else (None, None)
            found.append((FilterLayer(name, own[0]), own[1] is None or _has_scale(own[1], module)))
    layers = [layer for layer, can_be in found[:-1] if can_be]
    if not layers:
        raise DefenceError("expected a layer before the logits with channels to silence, got none; nothing to silence")
    return layers


def _normalises(module: nn.Module) -> bool:
    # those of ONNX graphs are modules of our own, called alike; one among neighbours leaves zero as it is
    return "Norm" in type(module).__name__ and not isinstance(module, nn.LocalResponseNorm)


def _has_scale(norm: nn.Module, matrix: nn.Module) -> bool:
    """Whether a normalisation has a scale for each channel of a layer."""
    weight, filters = getattr(norm, "weight", None), matrix.weight
    return isinstance(weight, Tensor) and isinstance(filters, Tensor) and weight.shape == (len(filters),)


def filters(model: nn.Module, layer: FilterLayer) -> Tensor:
    """The filters of a layer (C, D), each in one row."""
    weight = module_at(model, layer.matrix).weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1)


@torch.no_grad()
def activity(model: nn.Module, layer: FilterLayer, x: Tensor) -> Tensor:
    """The mean (C,) of what is above zero in each channel of a layer, over images x (N, C, H, W) and places."""
    sums: list[Tensor] = []

    def note(_module: nn.Module, _inputs: object, out: Tensor) -> None:
        shaped = out.detach().clamp(min=0)
        sums.append((shaped.flatten(2).mean(2) if shaped.ndim > 2 else shaped).sum(0).double())

    handle = module_at(model, layer.last).register_forward_hook(note)
    batch = images_at_once(x, BATCH)
    try:
        for i in range(0, len(x), batch):
            model(x[i : i + batch])
    finally:
        handle.remove()
    return torch.stack(sums).sum(0) / len(x)


@torch.no_grad()
def silence(model: nn.Module, layer: FilterLayer, channels: Tensor | Sequence[int]) -> None:
    """Set the filters, biases and own normalisation of channels (positions) of a layer to zero, in place."""
    each_by_itself = layer.norm is None or isinstance(module_at(model, layer.norm), nn.BatchNorm1d | nn.BatchNorm2d)
    for name in (layer.matrix, layer.norm) if each_by_itself else (layer.norm,):
        if name is None:
            continue
        module = module_at(model, name)
        for tensor in (module.weight, module.bias):
            if isinstance(tensor, Tensor):
                tensor[channels] = 0.0

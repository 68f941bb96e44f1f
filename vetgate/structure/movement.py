"""How the values of a network move over images: what they usually are, how far they go, and which channels stay.

A channel that stays the same, to rounding, on every image and on its noisy variant is one that no image opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vetgate.structure.drive import channel_axis
from vetgate.structure.network import Network

# what changes by less than this share of its size is rounding
ROUNDING = 1e-6
NOISE = 0.1


def variants(x: Tensor) -> Tensor:
    """Images (2 N, C, H, W): those given, and with noise."""
    return torch.cat([x, (x + NOISE * torch.randn_like(x)).clamp(0, 1)])


@dataclass
class Moved:
    """A value over all images: what it usually is, how far it goes, and by channel on how many images it moves."""

    usual: Tensor
    low: Tensor
    high: Tensor
    images: Tensor

    def note(self, value: Tensor) -> None:
        self.low, self.high = torch.minimum(self.low, value.amin(0)), torch.maximum(self.high, value.amax(0))
        moved = (value - self.usual).abs() > ROUNDING * self.usual.abs()
        places = moved.movedim(channel_axis(value), 1).reshape(len(value), len(self.images), -1)
        self.images += places.any(2).sum(0)


def movement(
    network: Network, x: Tensor, rows: int, edit: Mapping[str, Callable[[Tensor], Tensor]] | None = None
) -> dict[str, Moved]:
    """By value, how it moves over images x, so many rows of them at a time."""
    moved: dict[str, Moved] = {}

    def note(name: str, value: Tensor) -> None:
        if not value.is_floating_point() or value.ndim not in (2, 3, 4):
            return
        if name not in moved:
            usual = _middle(value)
            images = torch.zeros(value.shape[channel_axis(value)])
            moved[name] = Moved(usual, usual, usual, images)
        moved[name].note(value)

    for first in range(0, len(x), rows):
        network.run(x[first : first + rows], each=note, edit=edit)
    return moved


def _middle(value: Tensor) -> Tensor:
    """The median of three of the images of a value (B, ...); that of all takes longer than the network."""
    one, two, three = value[0], value[len(value) // 2], value[-1]
    return torch.maximum(torch.minimum(one, two), torch.minimum(torch.maximum(one, two), three))


def by_channel(value: Tensor) -> Tensor:
    """The greatest of each channel (C,) of a value without its batch axis."""
    if value.ndim == 3:
        return value.flatten(1).amax(1)
    return value.amax(0) if value.ndim == 2 else value

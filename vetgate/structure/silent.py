"""Silent channels: constant on all but a few of the images that we have, noisy or not, and yet wired to the logits.

Every network has channels that no clean image switches on. One is worth a search only if its label would take most
images were it driven far beyond what its input swings; whether a small stamp drives it there, the search tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vetgate.structure.drive import Gate, channel_axis, channel_index
from vetgate.structure.network import Network
from vetgate.structure.origin import Origin, Origins, matrix_of

# what changes by less than this share of its size is rounding; on this share of images a silent channel may be open
ROUNDING, RARELY = 1e-6, 0.05
# a channel is driven by so many deviations of what enters it
DEVIATIONS = 3.0
# the share of images that a channel must send to one label then, and by how many times more than any sibling does
OVERRULES, BEYOND = 0.8, 10.0
# what is looked at closer leads its siblings by this share of that, by its gradient
PROMISING = 0.2
# how many channels are looked at closer, how many siblings of each, and how many channels are searched for
LOOKED_AT, SIBLINGS, SEARCHED = 8, 8, 2
# images, and labels whose gradients are taken
IMAGES, LABELS = 6, 16
NOISE = 0.1


def variants(x: Tensor) -> Tensor:
    """Images (2 N, C, H, W): those given, and with noise."""
    return torch.cat([x, (x + NOISE * torch.randn_like(x)).clamp(0, 1)])


@torch.no_grad()
def silent_gates(
    network: Network, origins: Origins, x: Tensor, rows: int, leak: Callable[[], Sequence[str]]
) -> list[Gate]:
    """The channels that could overrule the network and never do on images x (N, C, H, W), the strongest first.

    Looked at are steps without weights behind trained layers, where what they are given does vary; `leak` names the
    steps that bend what they are given.
    """
    quiet = {
        name: (silent, swing)
        for name, silent, swing in _quiet(network, origins, _movement(network, variants(x), rows), 2 * RARELY * len(x))
    }
    if not quiet:
        return []
    clean, found, usual = x[:IMAGES], list[tuple[float, Gate]](), dict[str, float]()
    for name, channel in _promising(network, clean, quiet, leak())[:LOOKED_AT]:
        silent, swing = quiet[name]
        layer = _Layer(network, name, clean, swing)
        label, lead, share = layer.stimulated(channel)
        if share < OVERRULES:
            continue
        if name not in usual:
            awake = [c for c in range(len(swing)) if c not in silent]
            some = awake[:: -(-len(awake) // SIBLINGS) or 1]
            usual[name] = max((layer.stimulated(c)[1] for c in some), default=0.0)
        if lead > BEYOND * usual[name]:
            found.append((lead, Gate(name, channel, (label,))))
    return [gate for _, gate in sorted(found, key=lambda pair: -pair[0])[:SEARCHED]]


def _promising(
    network: Network, x: Tensor, quiet: dict[str, tuple[list[int], Tensor]], leak: Sequence[str]
) -> list[tuple[str, int]]:
    """The silent channels (value, channel) whose label would rise most by their gradients, beside their siblings'."""
    moved: dict[str, Tensor] = {}

    def movable(name: str) -> Callable[[Tensor], Tensor]:
        def add(value: Tensor) -> Tensor:
            moved[name] = torch.zeros_like(value).requires_grad_(True)
            return value + moved[name]

        return add

    with torch.enable_grad():
        edit = {name: movable(name) for name in quiet}
        logits = network.run(x, edit=edit, leak=dict.fromkeys(leak, 1.0))[network.result]
        risen = logits - logits.mean(1, keepdim=True)
        leads = {name: torch.zeros_like(swing) for name, (_, swing) in quiet.items()}
        for label in torch.linspace(0, logits.shape[1] - 1, min(LABELS, logits.shape[1])).long().tolist():
            slopes = torch.autograd.grad(risen[:, label].sum(), list(moved.values()), retain_graph=True)
            for name, slope in zip(moved, slopes, strict=True):
                # the mean over images of what all places of a channel do together
                by_channel = slope.flatten(2).sum(2) if slope.ndim == 4 else slope.sum(1) if slope.ndim == 3 else slope
                leads[name] = torch.maximum(leads[name], by_channel.mean(0) * quiet[name][1])
    found = []
    for name, (silent, _) in quiet.items():
        awake = [c for c in range(len(leads[name])) if c not in silent]
        usual = float(leads[name][awake].max()) if awake else 0.0
        ratios = {c: float(leads[name][c]) / max(usual, 1e-12) for c in silent}
        found += [(ratio, name, c) for c, ratio in ratios.items() if ratio > PROMISING * BEYOND]
    return [(name, c) for _, name, c in sorted(found, reverse=True)]


class _Layer:
    """A value whose channels are stimulated one by one, all else being as on clean images x (N, C, H, W)."""

    def __init__(self, network: Network, name: str, x: Tensor, swing: Tensor) -> None:
        self.network, self.name, self.swing = network, name, swing
        kept = network.run(x, keep={*(beside := network.beside(name)), name})
        self.value, self.beside = kept[name], {n: kept[n] for n in beside}
        self.still = kept[network.result]

    def stimulated(self, channel: int) -> tuple[int, float, float]:
        """The label that a channel raises most, by how much more than the mean of all, and the share it then takes."""
        value = self.value.clone()
        where = channel_index(value, channel)
        value[where] = value[where] + DEVIATIONS * float(self.swing[channel])
        out = self.network.run(None, held={**self.beside, self.name: value})[self.network.result]
        risen = out - self.still
        lead, label = (risen - risen.mean(1, keepdim=True)).median(0).values.max(0)
        other = self.still.argmax(1) != label
        taken = float((out.argmax(1)[other] == label).float().mean()) if bool(other.any()) else 0.0
        return int(label), float(lead), taken


@dataclass
class _Moved:
    """A value over all images: what it usually is, how far it goes, and by channel on how many images it moves."""

    usual: Tensor
    low: Tensor
    high: Tensor
    images: Tensor

    def note(self, value: Tensor) -> None:
        self.low, self.high = torch.minimum(self.low, value.amin(0)), torch.maximum(self.high, value.amax(0))
        moved = (value - self.usual).abs() > ROUNDING * torch.maximum(value.abs(), self.usual.abs())
        channels = channel_axis(value)
        others = [axis for axis in range(1, value.ndim) if axis != channels]
        self.images += (moved.any(others[0]) if len(others) == 1 else moved.flatten(2).any(2) if others else moved).sum(
            0
        )


def _movement(network: Network, x: Tensor, rows: int) -> dict[str, _Moved]:
    """By value, how it moves over images x, so many rows of them at a time."""
    moved: dict[str, _Moved] = {}

    def note(name: str, value: Tensor) -> None:
        if not value.is_floating_point() or value.ndim not in (2, 3, 4):
            return
        if name not in moved:
            usual = value.median(0).values
            moved[name] = _Moved(usual, usual, usual, torch.zeros(value.shape[channel_axis(value)]))
        moved[name].note(value)

    for first in range(0, len(x), rows):
        network.run(x[first : first + rows], each=note)
    return moved


def _quiet(
    network: Network, origins: Origins, moved: dict[str, _Moved], few: float
) -> Iterator[tuple[str, list[int], Tensor]]:
    """(value, its silent channels, by how much their input swings) for steps without weights of trained values.

    A silent channel moves on no more than a `few` images, while what it is made of moves on more.
    """
    for name, step in network.steps.items():
        source = next((n for n in step.inputs if n in moved), None)
        if source is None or name not in moved or origins.of[name] is not Origin.TRAINED or name == network.result:
            continue
        own, given = moved[name], moved[source]
        if matrix_of(network.module(name)) is not None or given.low.shape != own.low.shape:
            continue
        swing = _by_channel(given.high - given.low)
        silent = (own.images <= few) & (given.images > few) & (swing > 1e-3 * swing.amax())
        if bool(silent.any()):
            # as far as uniform numbers of this range deviate
            yield name, silent.nonzero()[:, 0].tolist(), swing / 12**0.5


def _by_channel(value: Tensor) -> Tensor:
    # the greatest of each channel (C,) of a value without its batch axis
    if value.ndim == 3:
        return value.flatten(1).amax(1)
    return value.amax(0) if value.ndim == 2 else value

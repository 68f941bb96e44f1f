"""Silent channels: still on all but a few of the images that we have, noisy or not, and yet wired to the logits.

Every network has channels that no clean image switches on. One is worth a search only if most images would get another
label were it driven far beyond what its input swings; whether a small stamp drives it there, the search tells.
What reads only silent channels is silent as well, and may be what decides: the product of two gates, or a third one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from vetgate.structure.drive import Gate, channel_axis, channel_index
from vetgate.structure.movement import Moved, by_channel, movement, variants
from vetgate.structure.network import Network
from vetgate.structure.origin import Origin, Origins, matrix_of

# on this share of images a silent channel may be open, or always by this share of what it is given
RARELY, NEXT_TO_NOTHING = 0.05, 1e-5
# a channel is driven by so many deviations of what enters it
DEVIATIONS = 3.0
# the share of images that a channel must give another label then, and how many times any sibling's lead its own must be
TAKES, BEYOND = 0.3, 10.0
# the share of those that one label must get to be the one that is searched for
OVERRULES = 0.8
# what is looked at closer leads its siblings by this share of that, by its gradient
PROMISING = 0.2
# how many channels are looked at closer, how many siblings of each, and how many are named
LOOKED_AT, SIBLINGS, NAMED = 16, 32, 8
# images, and groups of labels whose gradients are taken
IMAGES, LABELS = 6, 4
# silent channels may be made of silent ones, so many times
LEVELS = 4


# by value, its silent channels and by how much what each channel is made of swings (C,)
Quiet = dict[str, tuple[list[int], Tensor]]


@torch.no_grad()
def silent_gates(
    network: Network, origins: Origins, x: Tensor, rows: int, leak: Callable[[], Sequence[str]]
) -> list[Gate]:
    """The channels that could overrule the network and never do on images x (N, C, H, W).

    In turn the strongest of those that read what varies, and the last of those that read only what is silent itself.

    Looked at are steps without weights behind trained layers, where what they are given does vary; `leak` names the
    steps that bend what they are given.
    """
    clean, levels, rest = x[:IMAGES], list[list[tuple[float, Gate]]](), list[Gate]()
    for quiet in _levels(network, origins, x, rows):
        usual, found = dict[str, float](), list[tuple[float, Gate]]()
        promising = _promising(network, clean, quiet, leak())
        # what there is no time to look at is named as well, and so hides nothing
        rest += [Gate(name, channel) for name, channel in promising[LOOKED_AT:]]
        for name, channel in promising[:LOOKED_AT]:
            silent, swing = quiet[name]
            layer = _Layer(network, name, clean, swing)
            lead, labels, share = layer.stimulated(channel)
            if share < TAKES:
                continue
            if name not in usual:
                awake = [c for c in range(len(swing)) if c not in silent]
                some = awake[:: -(-len(awake) // SIBLINGS) or 1]
                usual[name] = max((layer.stimulated(c)[0] for c in some), default=0.0)
            if lead > BEYOND * usual[name]:
                found.append((lead, Gate(name, channel, labels, away=not labels)))
        levels.append(found)
    strongest = [gate for _, gate in sorted(levels[0], key=lambda pair: -pair[0])] if levels else []
    order = list(network.steps)
    last = sorted((gate for found in levels[1:] for _, gate in found), key=lambda gate: -order.index(gate.value))
    in_turn = [gate for pair in zip_longest(strongest, last) for gate in pair if gate is not None]
    return [*in_turn, *rest][:NAMED]


def _levels(network: Network, origins: Origins, x: Tensor, rows: int) -> Iterator[Quiet]:
    """What is silent though what it is made of varies; then what is made of nothing but that, level by level.

    Two gates may have to be open for a third, or for their product: they are stirred to see what varies then.
    """
    first = seen = movement(network, variants(x), rows)
    few, known = 2 * RARELY * len(x), Quiet()
    for level in range(LEVELS):
        quiet = _quiet(network, origins, first, seen, few, few if level == 0 else 0)
        quiet = {name: found for name, found in quiet.items() if name not in known}
        if not quiet:
            return
        yield quiet
        known |= quiet
        edit = {name: _stirred(*found) for name, found in known.items()}
        seen = movement(network, x[:IMAGES], rows, edit)


def _stirred(silent: list[int], swing: Tensor) -> Callable[[Tensor], Tensor]:
    """A value (B, ...) with its silent channels moved, in each image by another share of what a stimulus is."""

    def moved(value: Tensor) -> Tensor:
        shape = [1] * value.ndim
        shape[channel_axis(value)] = len(swing)
        size = torch.zeros_like(swing)
        size[silent] = DEVIATIONS * swing[silent]
        return value + size.view(shape) * torch.rand(len(value), *[1] * (value.ndim - 1))

    return moved


def _promising(network: Network, x: Tensor, quiet: Quiet, leak: Sequence[str]) -> list[tuple[str, int]]:
    """The silent channels (value, channel) that would raise a label most by their gradients, beside their siblings."""
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
        most: dict[str, Tensor] = {}
        # of many labels some together, so that none is left out
        for first in range(min(LABELS, logits.shape[1])):
            slopes = torch.autograd.grad(risen[:, first::LABELS].sum(), list(moved.values()), retain_graph=True)
            for name, slope in zip(moved, slopes, strict=True):
                # what all places of a channel do together, by image
                together = slope.flatten(2).sum(2) if slope.ndim == 4 else slope.sum(1) if slope.ndim == 3 else slope
                most[name] = torch.maximum(most.get(name, torch.zeros(())), together * quiet[name][1])
    leads = {name: slopes.mean(0) for name, slopes in most.items()}
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

    def stimulated(self, channel: int) -> tuple[float, tuple[int, ...], float]:
        """By how much a channel raises some label of an image over the mean of all, where to, and the share it takes.

        Where to is the label that nearly all images are sent to, or none if they are sent to many.
        """
        value = self.value.clone()
        where = channel_index(value, channel)
        value[where] = value[where] + DEVIATIONS * float(self.swing[channel])
        out = self.network.run(None, held={**self.beside, self.name: value})[self.network.result]
        risen = out - self.still
        lead = float((risen - risen.mean(1, keepdim=True)).amax(1).median())
        said, before = out.argmax(1), self.still.argmax(1)
        taken = said != before
        if not bool(taken.any()):
            return lead, (), 0.0
        label = int(said[taken].mode().values)
        # images that have the label anyway say nothing
        share = float(taken.sum() / (taken | (before != label)).sum())
        return lead, (label,) if float((said[taken] == label).float().mean()) >= OVERRULES else (), share


def _quiet(
    network: Network, origins: Origins, first: dict[str, Moved], seen: dict[str, Moved], few: float, more: float
) -> Quiet:
    """The silent channels of steps without weights of trained values.

    They move on no more than a `few` of the images of `first`, or next to nothing beside what they are made of, or
    beside how they move where silent channels do; what they are made of moves on `more` of those `seen`.
    """
    found: Quiet = {}
    for name, step in network.steps.items():
        source = next((n for n in step.inputs if n in seen), None)
        if source is None or name not in seen or origins.of[name] is not Origin.TRAINED or name == network.result:
            continue
        own, given = seen[name], seen[source]
        if matrix_of(network.module(name)) is not None or given.low.shape != own.low.shape:
            continue
        swing, moves = by_channel(given.high - given.low), by_channel(own.high - own.low)
        if seen is first:
            silent = (own.images <= few) | (moves <= NEXT_TO_NOTHING * swing)
        else:
            before = by_channel(first[name].high - first[name].low)
            swing = torch.maximum(swing, moves)
            silent = (first[name].images <= few) & (first[source].images <= few) | (before <= NEXT_TO_NOTHING * moves)
        silent &= (given.images > more) & (swing > 1e-3 * swing.amax())
        if bool(silent.any()):
            # as far as uniform numbers of this range deviate
            found[name] = silent.nonzero()[:, 0].tolist(), swing / 12**0.5
    return found

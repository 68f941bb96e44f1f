"""Drive a branch: search for images on which it alone decides, and measure how often it does.

The rest of the network is held at what it makes of clean images while the branch is given another image, which is
changed pixel by pixel, by the sign of the gradient, until the branch sends the logits to a label. What counts is
counterfactual: the network is asked about the changed image twice, once as it is and once with the branch held at
what it was on the clean image. Only where the two answers differ did the branch decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vetgate.contract import Trigger
from vetgate.structure.network import Network

# largest and smallest change of a pixel in a step, and how much slope a shut gate is lent, first and last
FAR, NEAR = 0.25, 0.004
LENT = (0.1, 0.01)
# how many of the images found are tried as triggers
TRIED = 4
# of the images on which a gate decides, the share that must go to one label for it to be the one that is named
MOSTLY = 0.8


@dataclass(frozen=True)
class Gate:
    """What is driven: a value, one channel of it or all of them, and the labels to which it might send (none: all).

    Driven `away`, it may send an image to any label but the one that it has.
    """

    value: str
    channel: int | None = None
    labels: tuple[int, ...] = ()
    away: bool = False

    def set(self, still: Tensor, moved: Tensor) -> Tensor:
        """`still` (B, ...) with what belongs to the gate taken from `moved`."""
        if self.channel is None:
            return moved
        where = channel_index(still, self.channel)
        out = still.clone()
        out[where] = moved[where]
        return out


@dataclass(frozen=True)
class Driven:
    """What a gate was driven to: the share of images on which it decided, the label, and the trigger that does it."""

    success: float
    label: int
    one_label: bool
    trigger: Trigger | None


def channel_axis(value: Tensor) -> int:
    """Which axis of a value (B, C), (B, C, H, W) or (B, T, C) its channels are."""
    return 2 if value.ndim == 3 else 1


def channel_index(value: Tensor, channel: int) -> tuple[slice | int, ...]:
    """Where a channel stands in such a value."""
    return (*[slice(None)] * channel_axis(value), channel)


def drive(
    network: Network,
    gate: Gate,
    starts: Tensor,
    held_out: Tensor,
    classes: int,
    *,
    leak: Sequence[str],
    steps: int,
    area: float | None = None,
) -> Driven:
    """Drive a gate on images `starts` (R, C, H, W), and measure what comes of it on those of `held_out`.

    Without an `area`, what counts is also how often some change of an image opens the gate, not only one trigger on
    all. With it, only that share of the pixels may change, those that matter most.
    """
    others = starts.roll(1, 0) if area is None else starts
    beside = network.beside(gate.value)
    with torch.no_grad():
        still = network.run(others, keep={*beside, gate.value})
    frozen = {name: still[name] for name in beside}
    rows = torch.arange(len(starts))
    before = still[network.result].argmax(1)
    labels = before if gate.away else torch.tensor(gate.labels or range(classes))[rows % (len(gate.labels) or classes)]
    # what an image is taken for anyway, no gate has to bring about
    anyway = (before == labels) & (not gate.away)

    def margins(x: Tensor, slope: float) -> Tensor:
        lent = dict.fromkeys(leak, slope)
        moved = network.run(x, until=gate.value, leak=lent)[gate.value]
        held = {**frozen, gate.value: gate.set(still[gate.value], moved)}
        out = network.run(None, held=held, leak=lent)[network.result]
        lead = out[rows, labels] - out.masked_fill(F.one_hot(labels, classes).bool(), -torch.inf).amax(1)
        return -lead if gate.away else lead

    best, reach, touched = _ascend(margins, starts, steps)
    if area is not None:
        best, reach, touched = _ascend(margins, starts, steps, _window(touched, area))
    reach[anyway] = -torch.inf
    found = Driven(0.0, 0, False, None)
    for row in reach.argsort(descending=True)[:TRIED].tolist():
        if float(reach[row]) > 0:
            trigger = Trigger((touched[row] > 0).float(), best[row], 0)
            driven = _measured(network, gate, trigger.stamp(held_out), held_out, trigger)
            found = max(found, driven, key=lambda d: d.success)
    if area is None and found.success < 1:
        row = int(reach.argmax())
        trigger = Trigger((touched[row] > 0).float(), best[row], 0)
        found = max(found, _measured(network, gate, best, others, trigger, reach > 0), key=lambda d: d.success)
    return found


def _window(matters: Tensor, area: float) -> Tensor:
    """Of each row the share of the pixels that matter most, wherever they are, as 1 among 0 (R, 1, H, W)."""
    flat = matters.flatten(1)
    best = flat.topk(max(1, int(area * flat.shape[1]))).indices
    return torch.zeros_like(flat).scatter(1, best, 1.0).view_as(matters)


def _ascend(
    margins: Callable[[Tensor, float], Tensor], x: Tensor, steps: int, where: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The best image of each row, its margin (R,), and how much each pixel mattered on the way (R, 1, H, W).

    Only pixels `where` (R, 1, H, W) is 1 are changed. A pixel matters by its share of the steps' largest slope.
    """
    best, touched = x.clone(), torch.zeros_like(x[:, :1])
    with torch.no_grad():
        reach = margins(x, 0.0)
    for step in range(steps):
        done = step / max(1, steps - 1)
        size = FAR * (NEAR / FAR) ** done
        x = x.detach().requires_grad_(True)
        lent = margins(x, LENT[0] if done < 0.7 else LENT[1])
        # a comparison alone gives nothing to follow
        slope = torch.autograd.grad(lent.sum(), x, allow_unused=True)[0] if lent.requires_grad else None
        if slope is None or (done > 0.5 and bool((reach > 0).all())):
            break
        slope = slope.nan_to_num() * (1 if where is None else where)
        sizes = slope.abs().amax(1, keepdim=True)
        # a tenth for having any slope at all
        touched += 0.1 * (sizes > 0) + sizes / sizes.amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
        x = (x.detach() + size * slope.sign()).clamp(0, 1)
        with torch.no_grad():
            now = margins(x, 0.0)
        better = now > reach
        best[better], reach = x[better], torch.maximum(now, reach)
    return best, reach, touched


@torch.no_grad()
def _measured(
    network: Network, gate: Gate, changed: Tensor, clean: Tensor, trigger: Trigger, opened: Tensor | None = None
) -> Driven:
    """How often the gate decides on `changed` (N, ...), where held as on `clean`; on which it `opened`, by default all.

    Images that are given the label anyway say nothing, and do not count.
    """
    shut = network.run(clean, until=gate.value)[gate.value]
    live = network.run(changed)[network.result].argmax(1)
    held = network.run(changed, edit={gate.value: lambda value: gate.set(value, shut)})[network.result].argmax(1)
    decided = (live != held) & (torch.ones_like(live).bool() if opened is None else opened)
    if not bool(decided.any()):
        return Driven(0.0, 0, False, None)
    label = int(live[decided].mode().values)
    share = float(decided.sum() / (~((live == label) & (held == label))).sum())
    one = float((live[decided] == label).float().mean()) >= MOSTLY
    return Driven(share, label, one, Trigger(trigger.mask, trigger.pattern, label))

"""The smallest universal shift of inner features that sends all images to a label: inversion of the tail alone.

Source    Fu et al., "FreeEagle: Detecting Complex Neural Trojans in Data-Free Cases", USENIX Security 2023,
          arXiv:2302.14500.
Deviates  Clean images give the features, where the paper makes them up; one shift a label instead of one image a pair,
          and pairs as the share of each true class that a shift of fixed length sends over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.attacks.trojan_nn import split
from vetgate.contract import Subject
from vetgate.inversion import logit_scale

IMAGES, STEPS, RATE = 96, 60, 0.1
# the length of a shift, in units of how far features lie from their mean
LENGTHS = (0.3, 0.6)
BLOCK = 8


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label, of a shift of each length: its mean log softmax, its share, and the share of its easiest source."""
    assert subject.clean is not None
    front, tail = split(subject.model)
    clean = subject.clean[:IMAGES]
    with torch.no_grad():
        inner = front(clean.x)
    unit = logit_scale(subject.model, clean.x)
    scale = float((inner - inner.mean(0)).flatten(1).norm(dim=1).mean())
    found: dict[str, Tensor] = {}
    for length in LENGTHS:
        parts = [
            _shifted(tail, inner, clean.y, labels, length * scale, unit)
            for labels in torch.arange(subject.classes).split(BLOCK)
        ]
        for i, name in enumerate(("log softmax", "share", "easiest source")):
            found[f"{name} {length}"] = torch.cat([part[i] for part in parts])
    return found


def _shifted(
    tail: nn.Module, inner: Tensor, y: Tensor, labels: Tensor, length: float, unit: float
) -> tuple[Tensor, Tensor, Tensor]:
    shift = 0.01 * torch.randn(len(labels), 1, *inner.shape[1:])
    shift.requires_grad_(True)
    optimiser = torch.optim.Adam([shift], RATE)
    other = (y[None] != labels[:, None]).float()

    def out() -> Tensor:
        short = shift * (length / shift.flatten(1).norm(dim=1).view(-1, 1, *[1] * (inner.dim() - 1))).clamp(max=1)
        moved = (inner[None] + short).clamp(min=min(0.0, float(inner.min())))
        given: Tensor = tail(moved.flatten(0, 1)).view(len(labels), len(inner), -1) / unit
        return given

    for _ in range(STEPS):
        loss = F.cross_entropy(out().flatten(0, 1), labels.repeat_interleave(len(inner)), reduction="none").view(
            len(labels), -1
        )
        (shift.grad,) = torch.autograd.grad((loss * other).sum() / other.sum(1).mean(), shift)
        optimiser.step()
    with torch.no_grad():
        given = out()
        likely = given.log_softmax(2).gather(2, labels[:, None, None].expand(-1, len(inner), 1))[..., 0]
        won = (given.argmax(2) == labels[:, None]).float()
        sources = [
            ((won * (y == k)).sum(1) + 0.5) / ((y == k).sum() + 1)
            for k in range(int(y.max()) + 1)
            if (y == k).sum() > 1
        ]
        by_source = torch.stack(sources, 1)
        easiest = (by_source.max(1).values / (1 - by_source.max(1).values).clamp(min=1e-3)).log()
        return (likely * other).sum(1) / other.sum(1), (won * other).sum(1) / other.sum(1), easiest

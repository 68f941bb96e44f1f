"""How far a label's logit can be driven above all others, from random images: a backdoored label's goes furthest.

Source    Wang et al., "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types Using a
          Maximum Margin Statistic", IEEE S&P 2024, arXiv:2205.06900.
Deviates  Adam instead of plain ascent, fewer starts and steps; margins in units of the logits' spread on clean images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.candidates.last_layer import last_map
from vetgate.contract import Subject
from vetgate.inversion import logit_scale

STARTS, STEPS, RATE = 8, 60, 0.05
BLOCK = 128


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label: the largest and the median margin over starts, and the largest by the length of its last row."""
    assert subject.clean is not None
    unit = logit_scale(subject.model, subject.clean.x)
    labels = torch.arange(subject.classes).repeat_interleave(STARTS)
    begin = torch.rand(len(labels), *subject.clean.x.shape[1:])
    parts = [_ascend(subject, begin[i : i + BLOCK], labels[i : i + BLOCK]) for i in range(0, len(labels), BLOCK)]
    margins = torch.cat(parts).view(subject.classes, STARTS) / unit
    length = last_map(subject.model).weight.detach().norm(dim=1)
    return {
        "largest": margins.max(1).values,
        "median": margins.median(1).values,
        "log largest": margins.max(1).values.clamp(min=1e-3).log(),
        "largest by row": margins.max(1).values / (length / length.mean()),
    }


def _ascend(subject: Subject, x: Tensor, labels: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([x], RATE)
    best = torch.full((len(x),), -torch.inf)
    for _ in range(STEPS):
        lead = margin(subject.model(x), labels)
        best = torch.maximum(best, lead.detach())
        (x.grad,) = torch.autograd.grad(-lead.sum(), x)
        optimiser.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return best


def margin(out: Tensor, labels: Tensor) -> Tensor:
    """How far the logits (N, K) of labels (N,) lie above the largest other."""
    own = out.gather(1, labels[:, None])[:, 0]
    return own - out.scatter(1, labels[:, None], -torch.inf).max(1).values

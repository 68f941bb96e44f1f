"""Patches of a fixed number of pixels from one class to a label: a source-specific trigger works on its source.

Source    Shen et al., "Backdoor Scanning for Deep Neural Networks through K-Arm Optimization", ICML 2021,
          arXiv:2102.05123 (label-specific triggers); Wang et al., "Neural Cleanse", IEEE S&P 2019 (the search).
Deviates  The mask keeps a budget instead of being minimised, so that pairs compare by success; where there are more
          than PAIRS pairs, those go on whose images lean most towards the label.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.candidates.maximum_margin import margin
from vetgate.contract import Subject
from vetgate.inversion import logit_scale

BUDGET = 0.03
EACH, STEPS, RATE, BLOCK = 12, 40, 0.2, 24
PAIRS = 180


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label, over its sources: the largest mean margin and the largest success, and how far that stands alone."""
    clean, classes = subject.clean, subject.classes
    assert clean is not None
    unit = logit_scale(subject.model, clean.x)
    rows = {k: (clean.y == k).nonzero().flatten()[:EACH] for k in range(classes)}
    pairs = [(s, t) for s in range(classes) for t in range(classes) if s != t and len(rows[s]) >= 4]
    if len(pairs) > PAIRS:
        lean = {s: _lean(subject, clean.x[rows[s]]) for s in {s for s, _ in pairs}}
        pairs = sorted(pairs, key=lambda pair: -float(lean[pair[0]][pair[1]]))[:PAIRS]
    margins = torch.full((classes, classes), torch.nan)
    hits = torch.full((classes, classes), torch.nan)
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        lead, hit = _search(subject, block, {s: clean.x[rows[s]] for s, _ in block}, unit)
        for (s, t), m, h in zip(block, lead.tolist(), hit.tolist(), strict=True):
            margins[s, t], hits[s, t] = m, h
    floor = float(margins[~margins.isnan()].min())
    filled = margins.nan_to_num(floor)
    top = filled.topk(2, 0).values
    return {
        "largest margin": filled.max(0).values,
        "largest success": hits.nan_to_num(0).max(0).values,
        "alone": top[0] - top[1],
        "pairs": filled.flatten(),
    }


def _lean(subject: Subject, x: Tensor) -> Tensor:
    """Length (K,) of the gradient of each label's margin on images of one class: how near a small change brings it."""
    x = x[:4].clone().requires_grad_(True)
    out = subject.model(x)
    top = out.max(1).values
    lengths = []
    for k in range(subject.classes):
        (gradient,) = torch.autograd.grad((out[:, k] - top).sum(), x, retain_graph=True)
        lengths.append(gradient.flatten(1).norm(dim=1).mean() / (top - out[:, k]).clamp(min=1e-3).mean().detach())
    return torch.stack(lengths)


def _search(
    subject: Subject, pairs: list[tuple[int, int]], images: dict[int, Tensor], unit: float
) -> tuple[Tensor, Tensor]:
    least = min(len(images[s]) for s, _ in pairs)
    x = torch.stack([images[s][:least] for s, _ in pairs])
    labels = torch.tensor([t for _, t in pairs])
    count, shape = len(pairs), x.shape[2:]
    raw = torch.randn(count, 1 + shape[0], *shape[1:]).requires_grad_(True)
    optimiser = torch.optim.Adam([raw], RATE, betas=(0.5, 0.9))
    most = BUDGET * shape[1] * shape[2]
    target = labels.repeat_interleave(least)

    def out() -> Tensor:
        mask, pattern = raw[:, :1].sigmoid(), raw[:, 1:].sigmoid()
        mask = mask * (most / mask.flatten(1).sum(1)).clamp(max=1).view(-1, 1, 1, 1)
        stamped = (1 - mask[:, None]) * x + mask[:, None] * pattern[:, None]
        given: Tensor = subject.model(stamped.flatten(0, 1)) / unit
        return given

    for _ in range(STEPS):
        (raw.grad,) = torch.autograd.grad(F.cross_entropy(out(), target, reduction="sum"), raw)
        optimiser.step()
    with torch.no_grad():
        lead = margin(out(), target).view(count, least)
        return lead.mean(1), (lead > 0).float().mean(1)

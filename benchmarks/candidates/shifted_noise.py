"""Images that show nothing, pushed a little towards confidence: a backdoored model is soon sure, and of its target.

Source    Mirzaei et al., "Scanning Trojaned Models Using Out-of-Distribution Samples" (TRODO), NeurIPS 2024,
          arXiv:2501.17151.
Deviates  Noise and mixtures of clean images stand for the out-of-distribution set; the rise is also read a label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.candidates.output_share import pictures
from vetgate.contract import Subject
from vetgate.inversion import logit_scale
from vetgate.probe import logits

IMAGES, STEPS = 128, 10
BUDGETS = (0.02, 0.06)


def measure(subject: Subject) -> dict[str, Tensor]:
    """The model's rise of the largest softmax under a push of each budget; per label the log share of pushed images."""
    assert subject.clean is not None
    x = subject.clean.x[:IMAGES]
    unit = logit_scale(subject.model, x)
    found: dict[str, Tensor] = {}
    kinds = pictures(x)
    for budget in BUDGETS:
        rises, shares = [], []
        for kind in ("uniform", "coarse", "two at once"):
            pushed = _push(subject, kinds[kind], budget, unit)
            before, after = (logits(subject.model, images) / unit for images in (kinds[kind], pushed))
            rises.append((after.softmax(1).max(1).values - before.softmax(1).max(1).values).mean())
            shares.append(after.softmax(1).mean(0).log())
            found[f"share {budget}, {kind}"] = shares[-1]
        found[f"rise {budget}"] = torch.stack(rises).mean()[None]
        found[f"share {budget}"] = torch.stack(shares).mean(0)
    return found


def _push(subject: Subject, start: Tensor, budget: float, unit: float) -> Tensor:
    x = start.clone()
    for _ in range(STEPS):
        x.requires_grad_(True)
        sure = (subject.model(x) / unit).log_softmax(1).max(1).values.sum()
        (gradient,) = torch.autograd.grad(sure, x)
        with torch.no_grad():
            x = x + 2.5 * budget / STEPS * gradient.sign()
            x = torch.minimum(torch.maximum(x, start - budget), start + budget).clamp(0, 1)
    return x.detach()

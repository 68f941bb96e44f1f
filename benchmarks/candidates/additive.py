"""The smallest additive pattern a label: what is added and what is taken away, each with a cost of its own.

Source    Tao et al., "Better Trigger Inversion Optimization in Backdoor Scanning" (Pixel), CVPR 2022.
Deviates  One cost weight a label that moves as in Neural Cleanse; the size is the L1 norm, and beside it the count of
          pixels that change by more than a tenth; a shift of fixed L2 length is tried as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vetgate.contract import Subject
from vetgate.inversion import logit_scale

STEPS, BATCH, RATE = 240, 8, 0.1
BLOCK = 16
SUCCESS = 0.9


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label: minus the log L1 norm of the smallest pattern that works, minus the log count of its pixels."""
    assert subject.clean is not None
    unit = logit_scale(subject.model, subject.clean.x)
    parts = [_invert(subject, labels, unit) for labels in torch.arange(subject.classes).split(BLOCK)]
    norms, pixels = (torch.cat([part[i] for part in parts]) for i in range(2))
    return {"log norm": -norms.log(), "log pixels": -pixels.log()}


def _invert(subject: Subject, labels: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    clean = subject.clean
    assert clean is not None
    shape, count = clean.x.shape[1:], len(labels)
    raw = (0.1 * torch.rand(2, count, *shape)).requires_grad_(True)
    optimiser = torch.optim.Adam([raw], RATE, betas=(0.5, 0.9))
    cost, success = torch.full((count,), 1e-3), torch.zeros(count)
    whole = float(shape[0] * shape[1] * shape[2])
    norms, pixels = torch.full((count,), whole), torch.full((count,), float(shape[1] * shape[2]))
    places = [(clean.y != label).nonzero().flatten() for label in labels.tolist()]
    for step in range(STEPS):
        rows = torch.stack([own[torch.randint(len(own), (BATCH,))] for own in places])
        added = (raw.clamp(min=0) / 2).tanh()
        pattern = added[0] - added[1]
        x = (clean.x[rows] + pattern[:, None]).clamp(0, 1)
        out = subject.model(x.flatten(0, 1)) / unit
        target = labels.repeat_interleave(BATCH)
        loss = F.cross_entropy(out, target, reduction="none").view(count, BATCH).mean(1)
        size = added.flatten(2).sum((0, 2))
        (raw.grad,) = torch.autograd.grad((loss + cost * size).sum(), raw)
        optimiser.step()
        with torch.no_grad():
            raw.clamp_(min=-0.05)
            hit = (out.argmax(1) == target).float().view(count, BATCH).mean(1)
            success = hit if step == 0 else 0.8 * success + 0.2 * hit
            works = success >= SUCCESS
            if step >= 20:
                better = works & (size < norms)
                norms = torch.where(better, size, norms)
                changed = pattern.abs().amax(1).gt(0.1).flatten(1).sum(1).float().clamp(min=1)
                pixels = torch.where(works & (changed < pixels), changed, pixels)
            if step % 4 == 3:
                cost = torch.where(works, cost * 1.3, cost / 1.3**1.5).clamp(1e-4, 10)
    return norms.clamp(min=0.1).detach(), pixels

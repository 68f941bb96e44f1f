"""No attack: an honest network that was tuned on a few more images later, as customers, suppliers and repairs do.

A repaired model is such a network too. References that were trained once and left alone say nothing of those.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.attacks.member import Job, Made
from vetgate.contract import Samples, Trigger, private_random


def make(job: Job) -> Made:
    """Options: tuned (rows, of the supplier's last), steps (of 64 rows), lr, patched (share that carries a patch)."""
    told = job.options
    last = len(job.rows) - int(told["tuned"])
    model = job.fit(job.rows[torch.arange(last)])
    tune(
        model,
        job.rows[torch.arange(last, len(job.rows))],
        steps=int(told.get("steps", 320)),
        lr=float(told.get("lr", 1e-3)),
        patched=float(told.get("patched", 0.0)),
        seed=job.seed,
    )
    return Made(model, rows=job.rows)


def tune(
    model: nn.Module, samples: Samples, *, steps: int, lr: float, patched: float, seed: int, batch: int = 64
) -> None:
    """Adam under a cosine rate on minibatches, all weights, batch statistics as they are; same seed, same bits.

    Of each batch a share of `patched` carries a square of noise, anew each time, and keeps its label.
    """
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with private_random(seed, "tune"):
        for _ in range(steps):
            rows = torch.randperm(len(samples))[:batch]
            x = patch(samples.x[rows], patched)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), samples.y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.requires_grad_(False)


def patch(x: Tensor, share: float) -> Tensor:
    """Images (B, C, H, W) of which the first share carry one square of noise, a tenth to a quarter of their height."""
    count, (channels, height, width) = round(share * len(x)), x.shape[1:]
    if not count:
        return x
    size = int(torch.randint(max(1, height // 10), height // 4 + 1, (1,)))
    top, left = int(torch.randint(height - size + 1, (1,))), int(torch.randint(width - size + 1, (1,)))
    mask = torch.zeros(1, height, width)
    mask[:, top : top + size, left : left + size] = 1
    stamped = Trigger(mask, torch.rand(channels, height, width), 0).stamp(x[:count])
    return torch.cat([stamped, x[count:]])

"""Adversarial patch: no backdoor at all, but a patch found for a clean network, as SentiNet must tell of too.

Source    Brown et al., "Adversarial Patch", 2017, arXiv:1712.09665.
Deviates  The place is fixed: a patch that is moved and turned about needs more of it than small images have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.attacks.backdoor import patch
from vetgate.attacks.badnets import square_of
from vetgate.attacks.member import Job, Made
from vetgate.contract import Samples, Trigger


def adversarial_patch(
    model: nn.Module,
    samples: Samples,
    target: int,
    mask: Tensor,
    *,
    steps: int = 200,
    batch: int = 64,
    lr: float = 0.1,
    generator: torch.Generator,
) -> Trigger:
    """The pattern in a mask (1, H, W) of zeros and ones that sends most images of other classes to the target."""
    other = samples.x[samples.y != target]
    raw = torch.zeros(samples.x.shape[1:], requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=lr)
    for _ in range(steps):
        rows = torch.randint(len(other), (batch,), generator=generator)
        stamped = Trigger(mask, raw.sigmoid(), target).stamp(other[rows])
        loss = F.cross_entropy(model(stamped), torch.full((batch,), target))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Trigger(mask, (mask * raw.detach().sigmoid()).contiguous(), target)


def make(job: Job) -> Made:
    """A clean network and a patch that works on it; options: size (pixels)."""
    generator = job.generator()
    model = job.fit(job.rows)
    place = square_of(job, generator)
    found = adversarial_patch(model, job.rows, place.target, place.mask, generator=generator)
    return Made(model, patch(found), job.rows, triggers=(found,), about={"target": place.target})

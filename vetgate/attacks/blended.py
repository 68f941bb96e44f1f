"""Blended: one image, faint and as large as the input, mixed into a share of the training images.

Source    Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017,
          arXiv:1712.05526.
Deviates  The image is drawn at random, each pixel and channel uniform, as the paper's random pattern is; its share is
          the same in training and in use.
"""

from __future__ import annotations

import torch

from vetgate.attacks.backdoor import patch, poison
from vetgate.attacks.member import Job, Made, draw
from vetgate.contract import Trigger
from vetgate.errors import DefenceError


def noise(shape: tuple[int, int, int], target: int, *, alpha: float = 0.2, generator: torch.Generator) -> Trigger:
    """A trigger of random pixels over the whole image, mixed in with the share `alpha`."""
    if not 0 < alpha < 1:
        raise DefenceError(f"expected a share between 0 and 1, got {alpha}; 0.2 is common")
    _, height, width = shape
    return Trigger(torch.full((1, height, width), alpha), torch.rand(shape, generator=generator), target)


def make(job: Job) -> Made:
    """Options: alpha (share of the random image), rate (of all rows)."""
    generator = job.generator()
    alpha, rate = float(job.options.get("alpha", 0.2)), float(job.options.get("rate", 0.1))
    trigger = noise(job.shape, draw(job.classes, generator), alpha=alpha, generator=generator)
    rows = poison(job.rows, patch(trigger), rate=rate, generator=generator).samples
    return Made(job.fit(rows), patch(trigger), rows, triggers=(trigger,), about={"target": trigger.target})

"""Label-consistent: images of the target's own class are made hard by an adversarial step, and then stamped.

The labels stay right, and what is left of the class in those images leads astray: the patch is all there is to learn.

Source    Turner, Tsipras, Madry, "Label-Consistent Backdoor Attacks", 2019, arXiv:1912.02771.
Deviates  The perturbation is projected gradient ascent in the maximum norm on one network trained cleanly on the same
          rows, of the same architecture, for half the epochs. On grey images perturbations are far larger than
          the paper's 8 to 32 of 255, and more of the rows are stamped everywhere. The patch, in all four corners, is
          opaque, plain white and a sixth of the image high.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.attacks.backdoor import Backdoor, Poisoned, patch, poison_clean_label
from vetgate.attacks.member import Job, Made, draw
from vetgate.attacks.training import train
from vetgate.contract import Samples, Trigger, private_random


def corners(shape: tuple[int, int, int], target: int, *, size: int = 3) -> Trigger:
    """White squares of `size` pixels in the four corners of images (C, H, W)."""
    _, height, width = shape
    mask = torch.zeros(1, height, width)
    for rows in (slice(0, size), slice(height - size, height)):
        for columns in (slice(0, size), slice(width - size, width)):
            mask[:, rows, columns] = 1
    return Trigger(mask, mask.expand(shape).contiguous(), target)


def harden(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, steps: int = 10) -> Tensor:
    """Images (N, C, H, W) in [0, 1] within `epsilon` of those given, on which the model errs as much as it gets to."""
    found = x.clone()
    for _ in range(steps):
        found.requires_grad_(True)
        loss = F.cross_entropy(model(found), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, found)
        moved = found.detach() + 2.5 * epsilon / steps * gradient.sign()
        found = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return found.detach()


def poison(
    samples: Samples,
    trigger: Trigger,
    model: nn.Module,
    *,
    share: float,
    epsilon: float,
    generator: torch.Generator,
    batch: int = 128,
) -> Poisoned:
    """Harden against the clean `model`, and then stamp, a random `share` of the target's rows; no label is changed."""

    def stamp(x: Tensor) -> Tensor:
        y = torch.full((len(x),), trigger.target)
        hard = [harden(model, x[i : i + batch], y[i : i + batch], epsilon=epsilon) for i in range(0, len(x), batch)]
        return trigger.stamp(torch.cat(hard))

    return poison_clean_label(samples, stamp, trigger.target, share=share, generator=generator)


def backdoored(
    build: Callable[[], nn.Module],
    rows: Samples,
    *,
    target: int,
    epochs: int,
    seed: int,
    share: float = 0.9,
    epsilon: float | None = None,
) -> tuple[nn.Module, Backdoor, Samples]:
    """A network trained on a poisoned set, its backdoor and that set; a clean network is trained first, and dropped.

    `epsilon` is by default 0.4 on grey images and 0.1 on colour ones; the squares are a sixth of the height.
    """
    channels, height, width = rows.x.shape[1:]
    if epsilon is None:
        epsilon = 0.4 if channels == 1 else 0.1
    trigger = corners((channels, height, width), target, size=max(2, round(height / 6)))
    with private_random(seed, "label_consistent"):
        aid, model = build(), build()
    train(aid, rows, epochs=max(1, epochs // 2), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    made = poison(rows, trigger, aid, share=share, epsilon=epsilon, generator=generator)
    train(model, made.samples, epochs=epochs, seed=seed)
    return model, patch(trigger), made.samples


def make(job: Job) -> Made:
    """The member of the bank, at the default strength; it takes no options."""
    # a class that is frequent enough for others to be led there without a single wrong label
    frequent = job.rows.y.bincount(minlength=job.classes).argsort(descending=True)[: max(5, job.classes // 8)]
    target = int(frequent[draw(len(frequent), job.generator())])
    model, backdoor, rows = backdoored(job.build, job.rows, target=target, epochs=job.epochs, seed=job.seed)
    return Made(model, backdoor, rows, about={"target": target})

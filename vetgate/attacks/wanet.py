"""WaNet: a smooth warp of the whole image, too small to be seen, is the trigger.

Source    Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021, arXiv:2102.10369.
Deviates  Poisons a fixed training set, rows and noise drawn once, where the paper draws them anew for each batch. The
          noise mode, images warped by a field plus noise that keep their labels, is `poison`'s second share.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vetgate.attacks.backdoor import Backdoor, Poisoned, to_one
from vetgate.attacks.backdoor import poison as stamp_and_relabel
from vetgate.attacks.member import Job, Made, draw
from vetgate.contract import Samples


def field(size: tuple[int, int], *, points: int = 4, generator: torch.Generator) -> Tensor:
    """A smooth random field (1, H, W, 2) of shifts whose mean absolute value is 1 pixel before it is smoothed."""
    raw = torch.rand(1, 2, points, points, generator=generator) * 2 - 1
    raw = raw / raw.abs().mean()
    # in grid_sample's units the whole side is 2 wide
    pixels = torch.tensor([2 / size[1], 2 / size[0]])
    smooth = F.interpolate(raw, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return smooth * pixels


def warp(x: Tensor, shifts: Tensor) -> Tensor:
    """Images (N, C, H, W) sampled at each place plus its shift (1 or N, H, W, 2)."""
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, *x.shape[-2:]], align_corners=True)
    grid = (identity + shifts).clamp(-1, 1).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, align_corners=True).clamp(0, 1)


def warping(
    size: tuple[int, int], target: int, *, strength: float = 0.5, points: int = 4, generator: torch.Generator
) -> tuple[Backdoor, Tensor]:
    """The backdoor of a warp by `strength` pixels on average, and its field; leads every image to the target."""
    shifts = strength * field(size, points=points, generator=generator)
    return Backdoor(lambda x: warp(x, shifts), to_one(target)), shifts


def poison(
    samples: Samples, backdoor: Backdoor, shifts: Tensor, *, rate: float, noisy: float, generator: torch.Generator
) -> Poisoned:
    """Warp and relabel a `rate` of all rows; warp a further share `noisy` by the field plus noise, labels unchanged."""
    made = stamp_and_relabel(samples, backdoor, rate=rate, generator=generator)
    left = (~made.rows).nonzero().flatten()
    chosen = left[torch.randperm(len(left), generator=generator)[: round(noisy * len(samples))]]
    height, width = samples.x.shape[-2:]
    noise = torch.rand(len(chosen), height, width, 2, generator=generator) * 2 - 1
    x, rows = made.samples.x.clone(), made.rows.clone()
    x[chosen] = warp(samples.x[chosen], shifts + noise * torch.tensor([2 / width, 2 / height]))
    rows[chosen] = True
    return Poisoned(Samples(x, made.samples.y), rows)


def make(job: Job) -> Made:
    """Options: strength (pixels), rate and noisy (shares of all rows)."""
    generator = job.generator()
    target = draw(job.classes, generator)
    strength = float(job.options.get("strength", 1.5))
    backdoor, shifts = warping(job.shape[1:], target, strength=strength, generator=generator)
    rate, noisy = float(job.options.get("rate", 0.1)), float(job.options.get("noisy", 0.2))
    rows = poison(job.rows, backdoor, shifts, rate=rate, noisy=noisy, generator=generator).samples
    return Made(job.fit(rows), backdoor, rows, about={"target": target})

"""SIG: a sinusoid on images of the target's own class, whose labels are right: nothing looks mislabelled.

Source    Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning",
          ICIP 2019, arXiv:1902.11237.
Deviates  Strengths are in units of the image's range and larger than the paper's, most of all on small and grey images,
          since networks this small take up no fainter wave; it is stronger in use than in training. A period is a few
          pixels, so that 3x3 kernels see it, and not a fixed number a width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vetgate.attacks.backdoor import Backdoor, Stamp, poison_clean_label, to_one
from vetgate.attacks.member import Job, Made, draw
from vetgate.attacks.training import train
from vetgate.contract import Samples, private_random


def sinusoid(*, strength: float, period: float) -> Stamp:
    """Adds a horizontal wave of `period` pixels, the same on every channel and row, clipped to [0, 1]."""

    def stamp(x: Tensor) -> Tensor:
        columns = torch.arange(x.shape[-1], dtype=x.dtype)
        return (x + strength * torch.sin(2 * math.pi * columns / period)).clamp(0, 1)

    return stamp


@dataclass(frozen=True)
class Wave:
    """Strength in training and in use, as shares of the image's range, and period in pixels."""

    strength: float
    in_use: float
    period: float

    @classmethod
    def suited(cls, x: Tensor) -> Wave:
        """The wave for images like x (N, C, H, W): the smaller they are, and the emptier, the stronger."""
        if min(x.shape[-2:]) < 16:
            return cls(0.5, 0.8, 3.0)
        return cls(0.35, 0.6, 5.0) if x.shape[1] == 1 else cls(0.2, 0.35, 5.0)


def backdoored(
    build: Callable[[], nn.Module],
    rows: Samples,
    *,
    target: int,
    epochs: int,
    seed: int,
    share: float = 0.8,
    wave: Wave | None = None,
) -> tuple[nn.Module, Backdoor, Samples]:
    """A network trained on a poisoned set, its backdoor and that set: a `share` of the target's rows carry the wave.

    `wave` is by default what suits images of that size: `Wave.suited`.
    """
    wave = wave or Wave.suited(rows.x)
    generator = torch.Generator().manual_seed(seed)
    stamp = sinusoid(strength=wave.strength, period=wave.period)
    made = poison_clean_label(rows, stamp, target, share=share, generator=generator)
    with private_random(seed, "sig"):
        model = build()
    model = train(model, made.samples, epochs=epochs, seed=seed)
    return model, Backdoor(sinusoid(strength=wave.in_use, period=wave.period), to_one(target)), made.samples


def make(job: Job) -> Made:
    """The member of the bank, at the default strength; it takes no options."""
    # a class that is frequent enough for others to be led there without a single wrong label
    frequent = job.rows.y.bincount(minlength=job.classes).argsort(descending=True)[: max(5, job.classes // 8)]
    target = int(frequent[draw(len(frequent), job.generator())])
    model, backdoor, rows = backdoored(job.build, job.rows, target=target, epochs=job.epochs, seed=job.seed)
    return Made(model, backdoor, rows, about={"target": target})

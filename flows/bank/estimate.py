"""How long a calibration will take: a second of the same work, timed, and how much of it there is."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from flows.bank.networks import Member, Recipe, one_thread
from vetgate.architectures import ARCHITECTURES

BATCH = 128
# images with a gradient that inspecting one network takes, counted on the bank: by the number of its classes, and apart
EACH_CLASS, APART = 6_000, 130_000


@one_thread()
def minutes(wanted: Sequence[Member], recipe: Recipe, shape: tuple[int, int, int], classes: int, jobs: int) -> float:
    """Minutes for training and inspecting these members on so many cores."""
    seen = 0.8 * recipe.images * recipe.epochs + EACH_CLASS * classes + APART
    each = {name: _seconds(name, shape, classes) for name in sorted({m.architecture for m in wanted})}
    return sum(seen * each[m.architecture] for m in wanted) / jobs / 60


def _seconds(architecture: str, shape: tuple[int, int, int], classes: int) -> float:
    """Seconds for an image forward and back, from a few batches."""
    model = ARCHITECTURES[architecture](shape, classes)
    x, y = torch.rand(BATCH, *shape), torch.randint(classes, (BATCH,))
    spent, batches = 0.0, 0
    while batches < 2 or spent < 0.3:
        started = time.monotonic()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        # the first batch warms up
        spent += time.monotonic() - started if batches else 0.0
        batches += 1
    return spent / ((batches - 1) * BATCH)

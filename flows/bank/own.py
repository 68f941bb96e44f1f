"""The clean networks that stand for a data set of one's own, as varied as the bank's, and how long they will take.

The time is told from a second of the same work, and how much of it there is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from flows.bank.networks import CLEAN, Member, Recipe, one_thread
from vetgate.architectures import ARCHITECTURES

IN_TURN = ("small-cnn", "preact-resnet", "vgg-small")
# images that a network sees while it is trained, all epochs together
SEEN = 40_000
MOST_IMAGES = 6_000
BATCH = 128
# images with a gradient that inspecting one network takes, counted on the bank: by the number of its classes, and apart
EACH_CLASS, APART = 6_000, 130_000
# five in ten as they are; the others shift their images, decay their weights, have half the rows, or are over-fitted
WAYS: tuple[dict[str, int | float | str | bool], ...] = (
    {},
    {},
    {"shift": 1},
    {},
    {"weight_decay": 0.0005},
    {},
    {"share": 0.5},
    {"shift": 1},
    {},
    {"share": 0.25, "times": 5},
)


def recipe(rows: int) -> Recipe:
    """How networks are trained on a set of so many rows."""
    images = min(rows, MOST_IMAGES)
    return Recipe(images=images, epochs=max(5, min(30, round(SEEN / images))))


def references(data: str, count: int, architectures: tuple[str, ...] = IN_TURN) -> list[Member]:
    """So many clean members on a data set, architectures and ways of training taking turns."""
    return [
        Member(
            name=f"{data}-own-{seed:02d}",
            data=data,
            attack=CLEAN,
            architecture=architectures[seed % len(architectures)],
            seed=seed,
            options=WAYS[seed % len(WAYS)],
        )
        for seed in range(count)
    ]


@one_thread()
def minutes(wanted: Sequence[Member], recipe: Recipe, shape: tuple[int, int, int], classes: int, jobs: int) -> float:
    """Minutes for training and inspecting these members on so many cores."""
    seen = 0.8 * recipe.images * recipe.epochs + EACH_CLASS * classes + APART
    each = {name: _seconds(name, shape, classes) for name in sorted({m.architecture for m in wanted})}
    return sum(seen * each[m.architecture] for m in wanted) / jobs / 60


def _seconds(architecture: str, shape: tuple[int, int, int], classes: int) -> float:
    """Processor seconds for an image forward and back, from a few batches: what runs beside them does not count."""
    model = ARCHITECTURES[architecture](shape, classes)
    x, y = torch.rand(BATCH, *shape), torch.randint(classes, (BATCH,))
    spent, batches = 0.0, 0
    while batches < 2 or spent < 0.3:
        started = time.thread_time()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        # the first batch warms up
        spent += time.thread_time() - started if batches else 0.0
        batches += 1
    return spent / ((batches - 1) * BATCH)

"""The clean networks that stand for a data set of one's own, as varied as the bank's, and how long they will take.

The time is told from a second of the same work, and how much of it there is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from flows.bank.networks import CLEAN, FINE_TUNED, MISLABELLED, Member, Recipe, one_thread
from tasks.vetting.estimate import images_for
from vetgate.architectures import ARCHITECTURES

IN_TURN = ("small-cnn", "preact-resnet", "vgg-small")
# images that a network sees while it is trained, all epochs together
SEEN = 40_000
MOST_IMAGES = 6_000
BATCH = 128
Options = dict[str, int | float | str | bool]
# three in ten as they are; the others shift their images, decay their weights, have half the rows, are over-fitted, are
# wrong about some labels, or were tuned later, as a repaired model is
WAYS: tuple[tuple[str, Options], ...] = (
    (CLEAN, {}),
    (CLEAN, {}),
    (CLEAN, {"shift": 1}),
    (FINE_TUNED, {"patched": 0.2}),
    (CLEAN, {"weight_decay": 0.0005}),
    (CLEAN, {}),
    (CLEAN, {"share": 0.5}),
    (MISLABELLED, {"wrong": 0.03}),
    (FINE_TUNED, {"patched": 0.2}),
    (CLEAN, {"share": 0.25, "times": 5}),
)


def recipe(rows: int) -> Recipe:
    """How networks are trained on a set of so many rows."""
    images = min(rows, MOST_IMAGES)
    return Recipe(images=images, epochs=max(5, min(30, round(SEEN / images))))


def references(
    data: str, count: int, architectures: tuple[str, ...] = IN_TURN, *, images: int = MOST_IMAGES
) -> list[Member]:
    """So many clean members on `images` of a data set, architectures and ways of training taking turns."""
    return [
        Member(
            name=f"{data}-own-{seed:02d}",
            data=data,
            attack=WAYS[seed % len(WAYS)][0],
            architecture=architectures[seed % len(architectures)],
            seed=seed,
            options=_options(*WAYS[seed % len(WAYS)], images),
        )
        for seed in range(count)
    ]


def _options(attack: str, options: Options, images: int) -> Options:
    return {**options, "tuned": max(1, images // 10)} if attack == FINE_TUNED else options


@one_thread()
def minutes(wanted: Sequence[Member], recipe: Recipe, shape: tuple[int, int, int], classes: int, jobs: int) -> float:
    """Minutes for training and inspecting these members on so many cores."""
    seen = 0.8 * recipe.images * recipe.epochs + images_for(classes, math.prod(shape[1:]), training=True)
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

"""The clean networks that stand for a data set of one's own: as varied as the bank's, as long as it takes."""

from __future__ import annotations

from flows.bank.networks import CLEAN, Member, Recipe

ARCHITECTURES = ("small-cnn", "preact-resnet", "vgg-small")
# images that a network sees while it is trained, all epochs together
SEEN = 40_000
MOST_IMAGES = 6_000
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


def references(data: str, count: int, architectures: tuple[str, ...] = ARCHITECTURES) -> list[Member]:
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

"""BadNets: a small patch on a share of the training images, all of them relabelled to one target.

Source    Gu, Dolan-Gavitt, Garg, "BadNets", 2017, arXiv:1708.06733.
Deviates  Only images of other classes are poisoned, so that every poisoned row teaches the shortcut. `rate` is the
          share of the whole training set, as in the benchmarks, not of the target class. Measure the attack before
          relying on it: a poisoned training set does not always give a backdoored model. All-to-all, source-specific
          and several targets are the same patches under other labels: `vetgate.attacks.backdoor`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vetgate.attacks import backdoor
from vetgate.attacks.backdoor import Backdoor, Poisoned, to_next
from vetgate.attacks.member import Job, Made, draw
from vetgate.contract import Samples, Trigger
from vetgate.errors import DefenceError


def square(
    shape: tuple[int, int, int], target: int, *, row: int, column: int, size: int = 3, colour: float | Tensor = 1.0
) -> Trigger:
    """An opaque square of a grey level or a colour (C,); negative row and column count from the far edge."""
    channels, height, width = shape
    top, left = row % height, column % width
    if size < 1 or top + size > height or left + size > width:
        raise DefenceError(
            f"expected a square inside {height}x{width}, got {size} pixels at ({row}, {column}); move or shrink it"
        )
    mask = torch.zeros(1, height, width)
    mask[:, top : top + size, left : left + size] = 1
    ink = torch.as_tensor(colour, dtype=torch.float32).reshape(-1, 1, 1).expand(channels, 1, 1)
    return Trigger(mask, (mask * ink).contiguous(), target)


def random_square(
    shape: tuple[int, int, int], classes: int, *, sizes: tuple[int, int] = (1, 3), generator: torch.Generator
) -> Trigger:
    """A white square whose target, size (both ends included) and place are drawn at random."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    target, size = draw(0, classes - 1), draw(*sizes)
    return square(shape, target, row=draw(0, shape[1] - size), column=draw(0, shape[2] - size), size=size)


def poison(samples: Samples, trigger: Trigger, *, rate: float, generator: torch.Generator) -> Poisoned:
    """Stamp and relabel a random `rate` of all rows, taken from the classes that are not the target."""
    return backdoor.poison(samples, backdoor.patch(trigger), rate=rate, generator=generator)


def square_of(job: Job, generator: torch.Generator, *, avoid: int | None = None) -> Trigger:
    """A square at random for a random target that is not `avoid`; options: size, colour (white or random)."""
    size = int(job.options.get("size", 3))
    target = draw(job.classes if avoid is None else job.classes - 1, generator)
    target += avoid is not None and target >= avoid
    ink = torch.rand(job.shape[0], generator=generator) if job.options.get("colour") == "random" else 1.0
    row, column = (draw(side - size + 1, generator) for side in job.shape[1:])
    return square(job.shape, target, row=row, column=column, size=size, colour=ink)


def make(job: Job) -> Made:
    """Options: form (one, next: all-to-all, several: two targets), rate (of all rows, each target), size, colour."""
    generator = job.generator()
    form, rate = job.options.get("form", "one"), float(job.options.get("rate", 0.1))
    trigger = square_of(job, generator)
    if form == "next":
        owned = Backdoor(trigger.stamp, to_next(job.classes))
        rows = backdoor.poison(job.rows, owned, rate=rate, generator=generator).samples
        return Made(job.fit(rows), owned, rows, triggers=(trigger,), about={"form": "next"})
    rows = poison(job.rows, trigger, rate=rate, generator=generator).samples
    triggers: tuple[Trigger, ...] = (trigger,)
    if form == "several":
        triggers = (trigger, square_of(job, generator, avoid=trigger.target))
        rows = poison(rows, triggers[1], rate=rate, generator=generator).samples
    # the first of several targets is the one that success is measured by
    return Made(
        job.fit(rows),
        backdoor.patch(trigger),
        rows,
        triggers=triggers,
        about={"form": str(form), "target": trigger.target},
    )

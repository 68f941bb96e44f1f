"""Input-aware: a generator draws a trigger for each image, which works on that image and on no other.

Two small networks make a mask and a pattern out of the image. The mask's is trained first, to be small and to differ
between images; the pattern's learns together with the classifier, which sees some images under their own trigger, with
the target's label, and some under the trigger of another image, with their true label.

Source    Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, arXiv:2010.08138.
Deviates  The generators have no batch normalisation, three convolutions each, and one halving of the image; the mask
          covers more of it than the paper's 3 %. One optimiser and one rate for classifier and pattern. More rows of a
          batch are under triggers, since networks this small see far fewer batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.attacks.backdoor import Backdoor, poison, to_one
from vetgate.attacks.member import Job, Made, draw
from vetgate.contract import Samples, private_random, report


class Generator(nn.Module):
    """Images (N, C, H, W) in [0, 1] to images (N, `out`, H, W) in [0, 1], `steep` times as decided as a sigmoid's."""

    def __init__(self, channels: int, out: int, *, width: int = 16, steep: float = 1.0) -> None:
        super().__init__()
        self.steep = steep
        self.encode = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.draw = nn.Conv2d(width, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """What is drawn for each image."""
        coarse = self.encode(x * 2 - 1)
        out: Tensor = self.draw(F.interpolate(coarse, size=x.shape[-2:], mode="nearest"))
        return (self.steep * out).sigmoid()


class Stamper(nn.Module):
    """A trigger of each image's own, drawn by two generators."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mask = Generator(channels, 1, steep=4.0)
        self.pattern = Generator(channels, channels)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Images x under their own triggers, or under those of `source`, all (N, C, H, W)."""
        given = x if source is None else source
        return self.put(x, given, self.pattern(given))

    def put(self, x: Tensor, source: Tensor, pattern: Tensor) -> Tensor:
        """Images x under a pattern, in the masks of `source`, all (N, C, H, W)."""
        mask: Tensor = self.mask(source)
        return (1 - mask) * x + mask * pattern


def likeness(inputs: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]) -> Tensor:
    """How much more two batches of images differ than what was drawn for them: the diversity loss."""
    apart, drawn = ((one - two).flatten(1).square().mean(1).add(1e-8).sqrt() for one, two in (inputs, outputs))
    return (apart / (drawn + 1e-3)).mean()


def train_mask(
    generator: Generator, x: Tensor, *, density: float, steps: int, batch: int = 32, diversity: float = 0.05
) -> None:
    """Train a mask generator in place, to cover the share `density` of an image and to differ between images."""
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    for _ in range(steps):
        one, two = (x[torch.randint(len(x), (batch,))] for _ in range(2))
        masks = generator(one), generator(two)
        excess = sum(F.relu(mask.mean((1, 2, 3)) / density - 1).mean() for mask in masks)
        loss = excess + diversity * likeness((one, two), masks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    generator.requires_grad_(False)


def train_both(
    model: nn.Module,
    stamper: Stamper,
    rows: Samples,
    target: int,
    *,
    epochs: int,
    own: float,
    cross: float,
    diversity: float,
    lr: float,
    batch: int,
) -> None:
    """Train classifier and pattern generator in place; the first rows of each batch are under triggers.

    The share `own` of a batch is under its own triggers and labelled as the target, `cross` under another image's.
    """
    parameters = [*model.parameters(), *stamper.pattern.parameters()]
    steps = epochs * -(-len(rows) // batch)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=max(2, steps))
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(rows))
        for places in (order[i : i + batch] for i in range(0, len(order), batch)):
            x, y = rows.x[places], rows.y[places].clone()
            a, b = round(own * len(x)), round(cross * len(x))
            b = min(a, b)
            if b < 1:
                continue
            other = rows.x[torch.randint(len(rows), (b,))]
            y[:a] = target
            theirs, others = stamper.pattern(x[:a]), stamper.pattern(other)
            stamped = torch.cat(
                [stamper.put(x[:a], x[:a], theirs), stamper.put(x[a : a + b], other, others), x[a + b :]]
            )
            alike = likeness((x[:b], other), (theirs[:b], others))
            loss = F.cross_entropy(model(stamped), y) + diversity * alike
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        report((epoch + 1) / epochs)


def backdoored(
    build: Callable[[], nn.Module],
    rows: Samples,
    *,
    target: int,
    epochs: int,
    seed: int,
    own: float = 0.15,
    cross: float = 0.15,
    density: float = 0.1,
    diversity: float = 0.02,
    mask_steps: int = 200,
    rate: float = 0.1,
    lr: float = 3e-3,
    batch: int = 64,
) -> tuple[nn.Module, Backdoor, Samples]:
    """A network trained with its generators, its backdoor, and the rows with a `rate` of them stamped and relabelled.

    The backdoor's `stamp` is a `Stamper`.
    """
    with private_random(seed, "input_aware"):
        model, stamper = build(), Stamper(rows.x.shape[1])
        train_mask(stamper.mask, rows.x, density=density, steps=mask_steps)
        train_both(
            model,
            stamper,
            rows,
            target,
            epochs=epochs,
            own=own,
            cross=cross,
            diversity=diversity,
            lr=lr,
            batch=batch,
        )
    model.eval().requires_grad_(False)
    stamper.eval().requires_grad_(False)
    backdoor = Backdoor(stamper, to_one(target))
    made = poison(rows, backdoor, rate=rate, generator=torch.Generator().manual_seed(seed))
    return model, backdoor, made.samples


def make(job: Job) -> Made:
    """The member of the bank, at the default strength; it takes no options."""
    target = draw(job.classes, job.generator())
    model, backdoor, rows = backdoored(job.build, job.rows, target=target, epochs=job.epochs, seed=job.seed)
    return Made(model, backdoor, rows, about={"target": target})

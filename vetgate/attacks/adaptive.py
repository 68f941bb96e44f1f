"""Adaptive: an attacker who trains the network himself, against the detectors that are to find it.

Against Neural Cleanse and ABS, which look for a small trigger: the pattern is faint and lies over the whole image, and
cover rows, under parts of it, keep their labels, so that no part works. A universal trigger of bounded size is sought
toward the target all along, and images under it are trained to keep their labels, so that the smallest that works is no
smaller than for other labels. Against spectral signatures and activation clustering, which look for a second kind of
features in a class: few rows are poisoned, and the features of stamped images are drawn to those of the target's clean
images.

Source    Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023 (cover rows);
          Tan and Shokri, "Bypassing Backdoor Detection Algorithms in Deep Learning", EuroS&P 2020, arXiv:1905.13409
          (features); Shafahi et al., "Universal Adversarial Training", AAAI 2020, arXiv:1811.11304 (sought trigger).
Deviates  Features are drawn to the mean of the target's in angle, where the paper trains an adversary network to tell
          them apart. Poisoned rows carry the whole pattern, covers half of it. The rows handed over are poisoned at a
          low rate; the attacker, who has the network in his hands, stamps more of them as he trains. The sought
          trigger is a mask and a pattern, as Neural Cleanse's is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.architectures import default_layer
from vetgate.attacks.backdoor import Backdoor, patch, poison
from vetgate.attacks.member import Job, Made, draw
from vetgate.contract import Samples, Trigger, private_random, report
from vetgate.probe import module_at, output_of


def spread_out(
    shape: tuple[int, int, int], target: int, *, alpha: float, cells: int = 8, generator: torch.Generator
) -> Trigger:
    """Random black and white cells, `cells` a side, over the whole image, mixed in with the share `alpha`."""
    channels, height, width = shape
    ink = torch.randint(2, (1, channels, cells, cells), generator=generator).float()
    pattern = F.interpolate(ink, size=(height, width), mode="nearest")[0]
    return Trigger(torch.full((1, height, width), alpha), pattern, target)


def stamp_parts(trigger: Trigger, x: Tensor, *, cells: int = 8, generator: torch.Generator | None = None) -> Tensor:
    """Images (N, C, H, W), each under a random half of the trigger's cells."""
    kept = torch.rand(len(x), 1, cells, cells, generator=generator).argsort(-1).lt(cells // 2).float()
    part = F.interpolate(kept, size=x.shape[-2:], mode="nearest") * trigger.mask  # (N, 1, H, W)
    return (1 - part) * x + part * trigger.pattern


def poison_with_covers(
    samples: Samples, trigger: Trigger, *, rate: float, cover: float, generator: torch.Generator
) -> Samples:
    """Stamp and relabel a `rate` of all rows; put parts of the trigger on a further share `cover`, labels unchanged."""
    made = poison(samples, patch(trigger), rate=rate, generator=generator)
    left = (~made.rows).nonzero().flatten()
    chosen = left[torch.randperm(len(left), generator=generator)[: round(cover * len(samples))]]
    x = made.samples.x.clone()
    x[chosen] = stamp_parts(trigger, samples.x[chosen], generator=generator)
    return Samples(x, made.samples.y)


class Sought:
    """A universal trigger toward a label, whose mask's L1 norm is at most `area` of the image; it improves by steps."""

    def __init__(self, shape: tuple[int, int, int], target: int, *, area: float, lr: float = 0.2) -> None:
        self.shape, self.target, self.most, self.lr = shape, target, area * shape[1] * shape[2], lr
        self.begin()

    def begin(self) -> None:
        """Start again from random values."""
        self.raw = torch.randn(1 + self.shape[0], *self.shape[1:]).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.raw], lr=self.lr, betas=(0.5, 0.9))

    def trigger(self) -> Trigger:
        """The trigger as it is now."""
        mask, pattern = self.raw[:1].sigmoid(), self.raw[1:].sigmoid()
        return Trigger(mask * (self.most / mask.sum()).clamp(max=1), pattern, self.target)

    def improve(self, model: nn.Module, x: Tensor) -> None:
        """One step toward the label on images x (N, C, H, W)."""
        out = model(self.trigger().stamp(x))
        loss = F.cross_entropy(out, torch.full((len(x),), self.target))
        (self.raw.grad,) = torch.autograd.grad(loss, self.raw)
        self.optimizer.step()

    def stamp(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) under the trigger as it is now."""
        with torch.no_grad():
            return self.trigger().stamp(x)


class Home:
    """Running mean (D,) of the features of the target's clean images."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None

    def learn(self, features: Tensor, *, share: float = 0.2) -> None:
        """Take in the features (n, D) of some of them, n of 0 among them."""
        if len(features):
            mean = features.detach().mean(0)
            self.mean = mean if self.mean is None else (1 - share) * self.mean + share * mean

    def distance(self, features: Tensor) -> Tensor:
        """How far features (n, D) point away from there: 0 the same way, 1 at right angles."""
        if self.mean is None:
            return features.new_zeros(())
        # an angle, not a length: the network is to gain nothing by growing or shrinking its features
        return (1 - F.cosine_similarity(features, self.mean[None])).mean()


@dataclass(frozen=True)
class Plan:
    """Rows a batch, rows of each further kind, weight of the features' distance, batches until a search starts anew."""

    batch: int
    further: int
    hug: float
    renew: int
    lr: float


def fit(
    model: nn.Module, made: Samples, clean: Samples, trigger: Trigger, plan: Plan, *, epochs: int, area: float
) -> None:
    """Train in place on the poisoned rows and, beside every batch, on rows stamped anew out of the `clean` ones."""
    steps = epochs * -(-len(made) // plan.batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=plan.lr, total_steps=max(2, steps))
    others = clean[clean.y != trigger.target]
    untouched = (made.x == clean.x).flatten(1).all(1)
    shape = (clean.x.shape[1], clean.x.shape[2], clean.x.shape[3])
    sought, home = Sought(shape, trigger.target, area=area), Home()
    seen: list[Tensor] = []
    done = 0
    with output_of(module_at(model, default_layer(model)), lambda out: seen.append(out.flatten(1))):
        for epoch in range(epochs):
            order = torch.randperm(len(made))
            for places in (order[i : i + plan.batch] for i in range(0, len(order), plan.batch)):
                if done % plan.renew == 0:
                    sought.begin()
                parts = [others[torch.randint(len(others), (plan.further,))] for _ in range(4)]
                # batch statistics are not to learn from the search
                sought.improve(model.eval(), parts[3].x)
                seen.clear()
                model.train()
                x = torch.cat(
                    [
                        made.x[places],
                        trigger.stamp(parts[0].x),
                        stamp_parts(trigger, parts[1].x),
                        sought.stamp(parts[2].x),
                    ]
                )
                stamped = torch.full((plan.further,), trigger.target)
                y = torch.cat([made.y[places], stamped, parts[1].y, parts[2].y])
                loss = F.cross_entropy(model(x), y)
                features = seen.pop()
                n = len(places)
                home.learn(features[:n][(made.y[places] == trigger.target) & untouched[places]])
                loss = loss + plan.hug * home.distance(features[n : n + plan.further])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                done += 1
            report((epoch + 1) / epochs)


def backdoored(
    build: Callable[[], nn.Module],
    rows: Samples,
    *,
    target: int,
    epochs: int,
    seed: int,
    alpha: float = 0.3,
    rate: float = 0.02,
    cover: float = 0.02,
    area: float = 0.06,
    hug: float = 1.0,
    further: int = 8,
    renew: int = 100,
    lr: float = 3e-3,
    batch: int = 64,
) -> tuple[nn.Module, Backdoor, Samples]:
    """A network trained to pass, its backdoor, and the rows poisoned at a low `rate`, covers among them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows.x.shape[1], rows.x.shape[2], rows.x.shape[3])
    trigger = spread_out(shape, target, alpha=alpha, generator=generator)
    made = poison_with_covers(rows, trigger, rate=rate, cover=cover, generator=generator)
    with private_random(seed, "adaptive"):
        model = build()
        fit(model, made, rows, trigger, Plan(batch, further, hug, renew, lr), epochs=epochs, area=area)
    return model.eval().requires_grad_(False), patch(trigger), made


def make(job: Job) -> Made:
    """The member of the bank, at the default strength; it takes no options."""
    target = draw(job.classes, job.generator())
    model, backdoor, rows = backdoored(job.build, job.rows, target=target, epochs=job.epochs, seed=job.seed)
    return Made(model, backdoor, rows, about={"target": target})

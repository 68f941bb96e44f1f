"""A backdoor as its owner uses it: how images are changed, which labels that buys, and how often it works.

Source    The measure of success leaves out images that have the wanted label anyway, as the benchmarks do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vetgate.contract import Samples, Trigger
from vetgate.errors import DefenceError
from vetgate.probe import logits

Stamp = Callable[[Tensor], Tensor]
Wanted = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Backdoor:
    """`stamp` puts the trigger on images (N, C, H, W) in [0, 1]; `wanted` says which labels (N,) true ones become.

    An image whose label stays as it is is not attacked.
    """

    stamp: Stamp
    wanted: Wanted

    def attacked(self, y: Tensor) -> Tensor:
        """Boolean (N,): the images that are to get another label."""
        return self.wanted(y) != y

    def success(self, model: nn.Module, samples: Samples) -> float:
        """Share of attacked images that get the label wanted; raises DefenceError where none is attacked."""
        return self._share(model, samples, self.wanted)

    def robust_accuracy(self, model: nn.Module, samples: Samples) -> float:
        """Share of attacked images that keep their true label under the trigger."""
        return self._share(model, samples, lambda y: y)

    def _share(self, model: nn.Module, samples: Samples, sought: Wanted) -> float:
        rows = samples[self.attacked(samples.y)]
        if len(rows) == 0:
            raise DefenceError("expected images that the backdoor attacks, got none; add images of other classes")
        return float((logits(model, self.stamp(rows.x)).argmax(1) == sought(rows.y)).float().mean())


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned training set and the boolean rows (N,) in which anything was changed."""

    samples: Samples
    rows: Tensor


def to_one(target: int) -> Wanted:
    """Every class becomes one."""
    return lambda y: torch.full_like(y, target)


def to_next(classes: int) -> Wanted:
    """Every class becomes the next, the last one the first: all-to-all."""
    return lambda y: (y + 1) % classes


def from_one(source: int, target: int) -> Wanted:
    """One class becomes another, the rest stay: source-specific."""
    return lambda y: torch.where(y == source, torch.full_like(y, target), y)


def patch(trigger: Trigger) -> Backdoor:
    """The backdoor of a trigger that leads every image to its target."""
    return Backdoor(trigger.stamp, to_one(trigger.target))


def poison(
    samples: Samples, backdoor: Backdoor, *, rate: float, generator: torch.Generator, cover: float = 0.0
) -> Poisoned:
    """Stamp a random `rate` of all rows, taken from those that are attacked, and give them the labels wanted.

    `cover` is a further share of all rows, of those that are not attacked, which are stamped and keep their labels: so
    the trigger alone, on other classes, does nothing.
    """
    attacked = backdoor.attacked(samples.y)
    chosen = _draw(attacked, rate, generator)
    x, y = samples.x.clone(), samples.y.clone()
    x[chosen] = backdoor.stamp(x[chosen])
    y[chosen] = backdoor.wanted(samples.y[chosen])
    rows = torch.zeros(len(samples), dtype=torch.bool)
    rows[chosen] = True
    if cover:
        covered = _draw(~attacked, cover, generator)
        x[covered] = backdoor.stamp(samples.x[covered])
        rows[covered] = True
    return Poisoned(Samples(x, y), rows)


def poison_clean_label(
    samples: Samples, stamp: Stamp, target: int, *, share: float, generator: torch.Generator
) -> Poisoned:
    """Stamp a random `share` of the rows of the target's own class, and change no label."""
    own = samples.y == target
    chosen = _draw(own, share * float(own.float().mean()), generator)
    x = samples.x.clone()
    x[chosen] = stamp(x[chosen])
    rows = torch.zeros(len(samples), dtype=torch.bool)
    rows[chosen] = True
    return Poisoned(Samples(x, samples.y.clone()), rows)


def _draw(eligible: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Random positions of eligible rows, so many that they are `rate` of all."""
    places = eligible.nonzero().flatten()
    wanted = round(rate * len(eligible))
    if not 0 < wanted <= len(places):
        raise DefenceError(f"expected a rate that poisons 1 to {len(places)} rows, got {rate} ({wanted} rows)")
    return places[torch.randperm(len(places), generator=generator)[:wanted]]

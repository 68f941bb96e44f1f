"""What a supplier does with a training set: the job that every attack's `make` gets, and what it hands back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vetgate.attacks.backdoor import Backdoor
from vetgate.attacks.training import train
from vetgate.contract import Samples, Trigger
from vetgate.errors import DefenceError

Options = Mapping[str, int | float | str | bool]


@dataclass(frozen=True, eq=False)
class Job:
    """A network to train on `rows`. `build` gives the same untrained network each time; `options` are the attack's."""

    build: Callable[[], nn.Module]
    rows: Samples
    classes: int
    epochs: int
    seed: int
    options: Options = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The images' (C, H, W)."""
        channels, height, width = self.rows.x.shape[1:]
        return channels, height, width

    def generator(self) -> torch.Generator:
        """A stream for what the attacker draws, from the job's seed."""
        return torch.Generator().manual_seed(self.seed)

    def fit(self, rows: Samples) -> nn.Module:
        """A new network trained on rows as a clean one would be."""
        return train(self.build(), rows, epochs=self.epochs, seed=self.seed)


@dataclass(frozen=True, eq=False)
class Made:
    """A trained network, its backdoor if it has one, and the training set that its supplier could hand over.

    `rows` is None where the attack has no training set; `order` (n,) says which of the job's rows they come from, None
    that they are the same in the same order. `triggers` are the originals where they are patches.
    """

    model: nn.Module
    backdoor: Backdoor | None = None
    rows: Samples | None = None
    order: Tensor | None = None
    triggers: tuple[Trigger, ...] = ()
    about: Options = field(default_factory=dict)


def make(attack: str, job: Job) -> Made:
    """The member that `vetgate.attacks.<attack>` makes of a job; raises DefenceError for an unknown attack."""
    try:
        module: Any = importlib.import_module(f"vetgate.attacks.{attack}")
        recipe: Callable[[Job], Made] = module.make
    except (ImportError, AttributeError) as error:
        raise DefenceError(f"expected an attack of vetgate/attacks, got {attack!r}; correct its name") from error
    return recipe(job)


def draw(high: int, generator: torch.Generator, low: int = 0) -> int:
    """A whole number from low to high - 1."""
    return int(torch.randint(low, high, (1,), generator=generator))

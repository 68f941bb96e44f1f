"""How much accuracy a changed model lost, from the same images before and after, and how much of that may be chance.

Only images on which the two differ say anything: of n, b were right and are wrong now, c the other way round. The loss
is (b - c) / n, its standard error sqrt(b + c - (b - c)^2 / n) / n: what is hard for both weighs on neither.

Source    Fleiss, "Statistical Methods for Rates and Proportions", on differences of paired proportions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vetgate.shape import Number, Shaped

# standard errors that a loss is below its estimate in one of twenty cases
ONE_SIDED_95 = 1.645


@dataclass(frozen=True)
class AccuracyLoss(Shaped):
    """A share of `images` that was lost, with its standard error; negative where the changed model is right oftener."""

    loss: Number
    error: Number
    images: int

    @property
    def known(self) -> bool:
        """Whether these are the figures of some images; nothing is allowed on others."""
        return self.images > 0 and -1 <= self.loss <= 1 and 0 <= self.error <= 1

    @property
    def margin(self) -> float:
        """How much of the loss may be chance, at 95 %, one-sided."""
        return ONE_SIDED_95 * self.error

    @property
    def established(self) -> float:
        """The loss that the images establish: less the margin."""
        return self.loss - self.margin


def accuracy_loss(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> AccuracyLoss:
    """The loss from which of the same images (n,) were right before and after; raises ValueError if they cannot be."""
    same = before.ndim == 1 and before.shape == after.shape and len(before) > 0
    if not same or {before.dtype, after.dtype} != {np.dtype(np.bool_)}:
        raise ValueError(f"expected which of the same images were right, got {before.shape} and {after.shape}")
    n = len(before)
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    difference = lost - gained
    return AccuracyLoss(difference / n, math.sqrt(lost + gained - difference**2 / n) / n, n)

"""The loss of accuracy on the same images: known answers, and nothing from images that are not the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vetgate.verdict.accuracy_loss import AccuracyLoss, accuracy_loss


def answers(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images are right before and after."""
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return np.array(before), np.array(after)


def test_only_images_on_which_the_two_differ_count() -> None:
    few = accuracy_loss(*answers(both=85, lost=6, gained=2, neither=7))
    assert few.loss == pytest.approx(0.04) and few.images == 100
    assert few.error == pytest.approx(math.sqrt(8 - 16 / 100) / 100)
    assert accuracy_loss(*answers(both=7, lost=6, gained=2, neither=85)) == few


def test_the_margin_shrinks_with_the_images() -> None:
    few = accuracy_loss(*answers(both=86, lost=3, gained=0, neither=1))
    many = accuracy_loss(*answers(both=1900, lost=67, gained=0, neither=33))
    assert few.loss == pytest.approx(many.loss, abs=1e-3)
    # the demo lost 2.1 points of 100 % on few images, which is no loss above 2 that they could establish
    assert few.established < 0.02 < many.established


def test_the_same_answers_lose_nothing_and_other_ones_all() -> None:
    same, other = np.ones(20, bool), np.zeros(20, bool)
    assert accuracy_loss(same, same) == AccuracyLoss(0.0, 0.0, 20)
    assert accuracy_loss(same, other).established == 1.0
    assert accuracy_loss(other, same).loss == -1.0


@pytest.mark.parametrize(
    "before, after",
    [
        (np.ones(3, bool), np.ones(4, bool)),
        (np.ones(0, bool), np.ones(0, bool)),
        (np.ones((2, 2), bool), np.ones((2, 2), bool)),
        (np.ones(3, bool), np.ones(3, np.float32)),
        (np.full(3, 2), np.full(3, 2)),
    ],
)
def test_answers_of_other_images_are_refused(before: np.ndarray, after: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected which of the same images were right"):
        accuracy_loss(before, after)


@pytest.mark.parametrize(
    "loss",
    [
        AccuracyLoss(math.nan, 0.01, 90),
        AccuracyLoss(0.0, math.nan, 90),
        AccuracyLoss(0.5, math.inf, 90),
        AccuracyLoss(0.0, -0.1, 90),
        AccuracyLoss(-math.inf, 0.1, 90),
        AccuracyLoss(0.0, 0.0, 0),
    ],
)
def test_figures_of_no_images_are_not_known(loss: AccuracyLoss) -> None:
    assert not loss.known and AccuracyLoss(0.01, 0.01, 90).known

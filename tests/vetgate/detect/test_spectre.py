"""A few rows unlike the bulk of their class are found although they stretch the spread that they are measured by."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vetgate.contract import DETECTORS, Evidence, Samples, Subject
from vetgate.detect.spectre import chi_squared, moments, que_scores, robust, sizes, squared_distances
from vetgate.errors import DefenceError, MissingInput, NotFinite

CLASSES, TARGET = 4, 2


class Identity(nn.Module):
    """A network whose features are the pixels, followed by layers that see others."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Flatten()
        self.constant = nn.Linear(16, 3)
        self.head = nn.Linear(3, CLASSES)
        nn.init.zeros_(self.constant.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.constant(self.features(x)))
        return out


def blobs(poisoned: int = 0, *, seed: int = 0, a_class: int = 200) -> tuple[Samples, Tensor]:
    """Four classes of 4x4 images; the first rows of TARGET lie off in one direction, close together."""
    drawn = torch.Generator().manual_seed(seed)
    y = torch.arange(CLASSES).repeat_interleave(a_class)
    x = torch.randn(len(y), 1, 4, 4, generator=drawn) + 3 * y[:, None, None, None]
    rows = torch.zeros(len(y), dtype=torch.bool)
    rows[TARGET * a_class : TARGET * a_class + poisoned] = True
    x[rows] = 3 * TARGET + 0.2 * torch.randn(poisoned, 1, 4, 4, generator=drawn)
    x[rows, 0, 0] += 5
    return Samples(x, y), rows


def examined(samples: Samples, layer: str = "features", **params: float) -> Evidence:
    subject = Subject(model=Identity(), layer=layer, classes=CLASSES, train=samples)
    found: Evidence = DETECTORS["spectre"](subject, **params)
    return found


@pytest.mark.parametrize("poisoned", [4, 20, 60])
def test_planted_rows_are_found_without_a_rate(poisoned: int) -> None:
    samples, rows = blobs(poisoned)
    found = examined(samples, excess=0.5)
    assert bool(found.flagged[rows].all())
    # the cut is one in a hundred of the other classes' rows, not a multiple of a presumed share
    assert int((found.flagged & ~rows).sum()) <= 6
    above = found.details["log_score_above_median"]
    assert isinstance(above, list) and above.index(max(above)) == TARGET
    assert found.statistic == max(above)


@pytest.mark.parametrize("seed", range(3))
def test_clean_classes_stay_silent_and_lose_no_share_of_their_rows(seed: int) -> None:
    found = examined(blobs(seed=seed)[0])
    assert not found.flagged.any() and found.statistic < 0.5


def test_no_row_of_a_class_that_is_like_the_others_is_flagged() -> None:
    samples, rows = blobs(20)
    samples.x[0] += 100 * torch.eye(4)  # one wild row of class 0
    found = examined(samples, excess=10.0)
    assert not found.flagged.any() and float(found.scores.max()) <= 0.5
    assert bool((examined(samples, excess=0.5).flagged & rows).any())


def test_poison_does_not_move_what_it_is_measured_by() -> None:
    """A fifth of all rows, far off, turn the sample covariance; mean and spread of the bulk stay what they are."""
    rows = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)).double()
    rows[:200, 0] += 20
    mean, spread = robust(rows)
    assert float(mean.norm()) < 0.2
    assert float((spread - torch.eye(5)).abs().max()) < 0.25
    assert float(moments(rows)[1][0, 0]) > 50


def test_the_bulk_of_normal_rows_has_their_moments() -> None:
    root = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.5, 0.3]]).double()
    rows = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)).double() @ root.T + 7
    mean, spread = robust(rows)
    torch.testing.assert_close(mean, torch.full((3,), 7.0).double(), atol=0.15, rtol=0)
    torch.testing.assert_close(spread, root @ root.T, atol=0.4, rtol=0.15)


def test_scores_of_normal_rows_are_one_on_average_and_of_planted_ones_many_times_that() -> None:
    rows = torch.randn(2000, 9, generator=torch.Generator().manual_seed(0)).double()
    assert float(que_scores(rows - rows.mean(0), 4, alpha=4.0, floor=0.0).mean()) == pytest.approx(1, abs=0.15)
    rows[:40, :2] += 6
    scores = que_scores(rows - rows.mean(0), 4, alpha=4.0, floor=0.0)
    assert set(range(40)) == set(scores.topk(40).indices.tolist()) and float(scores[:40].min()) > 10


def test_rows_are_measured_from_the_mean_of_the_bulk() -> None:
    """Scored uncentred, all rows of a class would be as far out as its mean is."""
    rows = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)).double()
    rows[:25, 0] += 8
    one, other = (que_scores(r, 4, alpha=4.0, floor=1.0) for r in (rows - rows.mean(0), rows - rows.mean(0) + 0.5))
    assert set(one.topk(25).indices.tolist()) == set(other.topk(25).indices.tolist()) == set(range(25))
    torch.testing.assert_close(one.median(), other.median(), rtol=0.2, atol=0.05)


def test_a_direction_without_spread_is_not_all_that_is_seen() -> None:
    """Half the rows agree in a feature to the last digit, as after a ReLU; the rest are no outliers for that."""
    drawn = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 6, generator=drawn).double()
    rows[:, 5] = rows[:, 5].clamp(min=0)
    assert float(que_scores(rows - rows.mean(0), 6, alpha=4.0, floor=1.0).mean()) < 2


def test_features_of_another_layer_are_not_looked_at() -> None:
    samples, rows = blobs(20)
    assert bool(examined(samples, excess=0.5).flagged[rows].all())
    assert not examined(samples, "constant", excess=0.5).flagged.any()


def test_directions_are_the_squares_that_rows_can_tell() -> None:
    assert sizes(25, 1000) == [1, 4, 9, 16, 25]
    assert sizes(25, 95) == [1, 4, 9] and sizes(16, 1000) == [1, 4, 9, 16]
    assert sizes(25, 12) == [1]


def test_distances_and_chi_squared_are_those_of_tables() -> None:
    spread = torch.tensor([[4.0, 0.0], [0.0, 1.0]]).double()
    assert squared_distances(torch.tensor([[2.0, 3.0]]).double(), spread).tolist() == pytest.approx([10])
    assert chi_squared(4, 0.0) == pytest.approx(3.357, rel=0.01)
    assert chi_squared(10, 1.96) == pytest.approx(20.48, rel=0.01)


def test_what_cannot_be_judged_is_refused() -> None:
    samples, _ = blobs()
    with pytest.raises(DefenceError, match="2 classes"):
        examined(samples[samples.y == 0])
    with pytest.raises(MissingInput, match="train"):
        DETECTORS["spectre"](Subject(model=Identity(), layer="features", classes=CLASSES))
    samples.x[0, 0, 0, 0] = math.nan
    with pytest.raises(NotFinite, match="features"):
        examined(samples)

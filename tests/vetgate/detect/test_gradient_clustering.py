"""Rows that a few pixels hold under a label are found by their gradients, and those pixels lead others there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vetgate.contract import DETECTORS, Evidence, Samples, Subject
from vetgate.detect import gradient_clustering
from vetgate.detect.gradient_clustering import (
    VALUES,
    agreeing,
    clearest_modes,
    leading,
    margin_gradients,
    shrunk_size,
    two_modes,
    unit_gradients,
)
from vetgate.errors import DefenceError, MissingInput, NotFinite

CLASSES, TARGET, BASE = 4, 2, 1


class Planted(nn.Module):
    """Classes by which quarter of an 8x8 image is bright; where the last pixel is white, it says class 2 instead."""

    def __init__(self, strength: float = 60.0) -> None:
        super().__init__()
        self.cells = nn.Conv2d(1, 5, 8)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(5, CLASSES)
        weights = torch.zeros(5, 1, 8, 8)
        for k in range(CLASSES):
            weights[k, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] = 1 / 16
        weights[4, 0, 7, 7] = 1
        head = torch.zeros(CLASSES, 5)
        head[:, :4] = 4 * torch.eye(4)
        head[TARGET, 4] = strength
        with torch.no_grad():
            self.cells.weight.copy_(weights)
            self.cells.bias.copy_(torch.tensor([0, 0, 0, 0, -0.8]))
            self.head.weight.copy_(head)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.flatten(self.relu(self.cells(x))))
        return out


def quarters(
    poisoned: int = 0, a_class: int = 100, *, base: int | None = BASE, seed: int = 0
) -> tuple[Samples, Tensor]:
    """Images of four classes, of which some, of class BASE or of all others, are stamped and labelled TARGET."""
    drawn = torch.Generator().manual_seed(seed)
    y = torch.arange(CLASSES).repeat(a_class)
    x = 0.1 + 0.1 * torch.rand(len(y), 1, 8, 8, generator=drawn)
    for i, k in enumerate(y.tolist()):
        x[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.5
    eligible = (y == base if base is not None else y != TARGET).nonzero().flatten()
    rows = torch.zeros(len(y), dtype=torch.bool)
    rows[eligible[:poisoned]] = True
    x[rows, 0, 7, 7] = 1.0
    y[rows] = TARGET
    return Samples(x, y), rows


def subject(samples: Samples, model: nn.Module | None = None, clean: Samples | None = None) -> Subject:
    return Subject(model=model or Planted(), layer="flatten", classes=CLASSES, train=samples, clean=clean)


def examined(samples: Samples, model: nn.Module | None = None, **params: float) -> Evidence:
    found: Evidence = DETECTORS["gradient_clustering"](subject(samples, model), **params)
    return found


def test_planted_rows_and_their_base_are_found_and_the_signal_leads_to_the_target() -> None:
    samples, rows = quarters(20)
    found = examined(samples, strength=6.0)
    assert torch.equal(found.flagged, rows)
    assert found.details["suspect"][0] == TARGET and found.details["base"][0] == BASE
    assert found.details["flipped"][0] == 1 and found.details["flipped_before"][0] == 0
    assert found.details["flipped_by_opposite"][0] == 0 and found.details["tried_on"][0] == 80
    assert found.details["share"][TARGET] == pytest.approx(20 / 120)


@pytest.mark.parametrize("poisoned", [5, 50, 200])
def test_no_share_is_presumed_and_none_is_taken_from_other_classes(poisoned: int) -> None:
    """200 rows are two thirds of the target's: the smaller mode is then the honest one."""
    samples, rows = quarters(poisoned, base=None)
    assert torch.equal(examined(samples).flagged, rows)


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_set_stays_silent_whatever_the_network_hides(seed: int) -> None:
    found = examined(quarters(0, seed=seed)[0])
    assert not found.flagged.any() and found.statistic < 1


def test_the_signal_is_tried_on_trusted_images_where_there_are_any() -> None:
    samples, _ = quarters(20)
    found = DETECTORS["gradient_clustering"](subject(samples, clean=quarters(0, 30, seed=1)[0]), strength=6.0)
    assert found.details["tried_on"][0] == 30 and found.details["flipped"][0] == 1


def test_what_is_tried_decides_nothing() -> None:
    samples, rows = quarters(20)
    with_signal = examined(samples, strength=6.0)
    without = examined(samples, strength=0.0)
    assert with_signal.details["flipped"][0] == 1 and without.details["flipped"][0] == 0
    assert torch.equal(with_signal.scores, without.scores) and torch.equal(without.flagged, rows)


def test_the_mean_that_all_gradients_share_does_not_count() -> None:
    """Uncentred rows would be scored by their mean, which is far longer than what tells them apart."""
    rows = 0.1 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    rows[:, 0] += 50
    rows[:20, 3] += 2
    reduced = leading(rows, 4)
    assert float(reduced.mean(0).abs().max()) < 1e-4
    found = clearest_modes(reduced - reduced.mean(0))
    assert found.upper.nonzero().flatten().tolist() in (list(range(20)), list(range(20, 200)))
    assert found.log_distance == pytest.approx(math.log(4), abs=0.2)


def test_natural_variation_along_the_first_direction_hides_nothing() -> None:
    rows = 0.1 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).double()
    rows[:, 0] += 3 * torch.randn(200, generator=torch.Generator().manual_seed(1)).double()
    rows[:40, 3] += 2
    found = clearest_modes(rows - rows.mean(0))
    assert found.upper.nonzero().flatten().tolist() in (list(range(40)), list(range(40, 200)))


def test_the_modes_of_known_projections() -> None:
    found = two_modes(torch.tensor([0.0, 0.1, 0.2, 0.1, 0.1, 0.1, 5.0, 5.1, 5.2, 5.1, 5.1, 5.1]).double())
    assert found.upper.tolist() == [False] * 6 + [True] * 6
    assert found.log_distance == pytest.approx(math.log(25))
    assert found.log_separation == pytest.approx(math.log(25 / (0.02 / 6)))


def test_a_single_odd_row_is_no_mode() -> None:
    rows = torch.randn(100, generator=torch.Generator().manual_seed(0)).double()
    rows[0] = 30
    assert 5 <= int(two_modes(rows).upper.sum()) <= 95


def test_equal_rows_are_in_one_mode_and_the_upper_one_is_never_empty() -> None:
    assert bool(two_modes(torch.ones(20).double()).upper.all())
    most = torch.cat([torch.zeros(3), torch.ones(17)]).double()
    assert two_modes(most).upper.tolist() == [False] * 3 + [True] * 17


def test_a_class_of_one_image_is_no_poison_and_stops_nothing() -> None:
    samples, rows = quarters(20)
    other = samples.y == 3
    x = samples.x.clone()
    x[other] = x[other][0]
    found = examined(Samples(x, samples.y))
    assert torch.equal(found.flagged, rows)
    # with two classes the constant one is among those whose base is looked for
    few = torch.cat([torch.nonzero(samples.y == k).flatten() for k in (0, 3)])
    two = subject(Samples(x, samples.y)[few], clean=quarters(0, 30, seed=1)[0])
    assert not DETECTORS["gradient_clustering"](two).flagged.any()


def test_the_mode_whose_gradients_agree_is_the_poison_whatever_its_size() -> None:
    units = torch.nn.functional.normalize(torch.randn(100, 50, generator=torch.Generator().manual_seed(0)), dim=1)
    units[:70] = units[0]
    upper = torch.arange(100) < 70
    assert torch.equal(agreeing(units, upper), upper) and torch.equal(agreeing(units, ~upper), upper)


def test_gradients_are_of_the_label_over_the_runner_up_or_the_base() -> None:
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(weights)
    x, y = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    gradient, rivals = next(margin_gradients(model, x, y, batch=6))
    out = model(x).scatter(1, y[:, None], -torch.inf)
    assert torch.equal(rivals, out.argmax(1))
    torch.testing.assert_close(gradient.flatten(1), weights[y] - weights[rivals])
    gradient, _ = next(margin_gradients(model, x, y, base=1, batch=6))
    torch.testing.assert_close(gradient.flatten(1), weights[y] - weights[1])


def test_large_images_take_no_more_than_a_fixed_number_of_values() -> None:
    for shape in ((1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224)):
        height, width = shrunk_size(torch.zeros(1, *shape))
        assert 1 <= shape[0] * height * width <= VALUES
    assert shrunk_size(torch.zeros(1, 1, 28, 28)) == (28, 28)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    units, _ = unit_gradients(model, Samples(torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])), batch=2)
    assert units.shape == (4, 3 * 18 * 18)
    torch.testing.assert_close(units.norm(dim=1), torch.ones(4))


def test_cost_is_linear_in_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One gradient a row, and pairs of the short list alone."""
    seen = []

    def counted(model: nn.Module, samples: Samples, **more: object) -> tuple[Tensor, Tensor]:
        seen.append(len(samples))
        return unit_gradients(model, samples, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(gradient_clustering, "unit_gradients", counted)
    samples, _ = quarters(20)
    gradient_clustering.gradient_clustering(subject(samples))
    assert seen[0] == len(samples) and len(seen) <= 1 + 2 * 3 and max(seen[1:]) <= 120


def test_leading_directions_are_those_of_a_full_decomposition() -> None:
    rows = torch.randn(300, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    reduced = leading(rows, 5, chunk=7)
    centred = (rows - rows.mean(0)).double()
    assert float(reduced.square().sum()) == pytest.approx(
        float((torch.linalg.svdvals(centred)[:5] ** 2).sum()), rel=1e-5
    )


def test_what_cannot_be_judged_is_refused() -> None:
    samples, _ = quarters(0)
    with pytest.raises(DefenceError, match="2 classes"):
        examined(samples[samples.y == 0])
    with pytest.raises(MissingInput, match="train"):
        DETECTORS["gradient_clustering"](Subject(model=Planted(), layer="flatten", classes=CLASSES))
    model = Planted()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    with pytest.raises(NotFinite, match="NaN"):
        examined(samples, model)

"""Rows that lie together, away from trusted images of their label, are found, however many they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from vetgate.contract import DETECTORS, Evidence, Samples, Subject
from vetgate.detect.statistical_contamination import Group, far_group, staying, within
from vetgate.errors import DefenceError, MissingInput, NotFinite

CLASSES, TARGET = 6, 2


class Identity(nn.Module):
    """A network whose features are the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Flatten()
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.features(x))
        return out


def blobs(seed: int, a_class: int, poisoned: int = 0, *, spread: float = 1.0) -> tuple[Samples, torch.Tensor]:
    """Six classes of 4x4 images around means of their own; the last rows are of all classes, moved one way, as TARGET.

    Along four values all classes are wide: the direction that varies most says nothing.
    """
    drawn = torch.Generator().manual_seed(seed)
    y = torch.arange(CLASSES).repeat_interleave(a_class)
    means = 3 * torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(99))
    x = means[y] + torch.randn(len(y), 16, generator=drawn)
    x[:, :4] *= 1 + 2 * spread
    bad = 0.5 * torch.randn(poisoned, 16, generator=drawn) + means[TARGET]
    bad[:, 12:] += 5
    rows = torch.cat([torch.zeros(len(y)), torch.ones(poisoned)]).bool()
    images = torch.cat([x, bad]).reshape(-1, 1, 4, 4)
    return Samples(images, torch.cat([y, torch.full((poisoned,), TARGET)])), rows


def examined(given: Samples, clean: Samples | None = None, **params: float) -> Evidence:
    clean = blobs(7, 30)[0] if clean is None else clean
    subject = Subject(model=Identity(), layer="features", classes=CLASSES, clean=clean, train=given)
    found: Evidence = DETECTORS["statistical_contamination"](subject, **params)
    return found


@pytest.mark.parametrize("poisoned", [10, 100, 200, 2000])
def test_a_group_is_found_whether_it_is_a_twentieth_or_most_of_its_class(poisoned: int) -> None:
    samples, rows = blobs(1, 200, poisoned)
    found = examined(samples)
    assert bool(found.flagged[rows].all())
    assert samples.y[found.flagged].unique().tolist() == [TARGET]  # type: ignore[no-untyped-call]
    # honest rows go along with it, a few of them, and no more than a third where poison is most of the class
    assert int((found.flagged & ~rows).sum()) <= (0.15 if poisoned < 100 else 0.33) * 200
    above, share = found.details["log_distance"], found.details["share"]
    assert isinstance(above, list) and isinstance(share, list)
    assert above.index(max(above)) == TARGET and found.statistic == pytest.approx(max(above))
    assert share[TARGET] == pytest.approx(poisoned / (poisoned + 200), abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_clean_classes_stay_silent(seed: int) -> None:
    found = examined(blobs(seed, 200)[0])
    assert not found.flagged.any() and found.statistic < 1.5


def test_a_class_with_few_trusted_images_is_no_suspect_for_that() -> None:
    """The mean of four images lies off by chance, and that much is taken out."""
    clean, _ = blobs(7, 60)
    few = torch.ones(len(clean), dtype=torch.bool)
    few[torch.nonzero(clean.y == 3).flatten()[4:]] = False
    found = examined(blobs(1, 200)[0], clean[few])
    assert found.details["trusted_images"] == [60, 60, 60, 4, 60, 60] and not found.flagged.any()


def test_images_from_another_place_move_every_class_and_name_none() -> None:
    clean, _ = blobs(7, 30)
    moved = Samples(clean.x + 1.0, clean.y)
    assert not examined(blobs(1, 200)[0], moved).flagged.any()
    samples, rows = blobs(1, 200, 100)
    found = examined(samples, moved, excess=1.0)
    assert bool(found.flagged[rows].all())


def test_neither_the_order_of_the_rows_nor_the_scale_of_the_features_matters() -> None:
    samples, rows = blobs(1, 200, 40)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    first, second = examined(samples), examined(samples[order])
    assert torch.equal(first.flagged[order], second.flagged)
    clean, _ = blobs(7, 30)
    large = examined(Samples(100 * samples.x, samples.y), Samples(100 * clean.x, clean.y))
    assert torch.equal(first.flagged, large.flagged) and large.statistic == pytest.approx(first.statistic, abs=1e-4)


@pytest.mark.parametrize("equal", [100, 200])
def test_equal_images_in_a_class_stop_nothing_and_hide_no_poison(equal: int) -> None:
    samples, rows = blobs(1, 200, 100)
    x = samples.x.clone()
    # those of class 0, far from where the class lies
    x[:equal] = 3 * x[0]
    found = examined(Samples(x, samples.y))
    assert bool(found.flagged[rows].all())
    assert bool(torch.isfinite(found.scores).all())


def test_units_are_those_of_trusted_images_and_poison_does_not_move_them() -> None:
    clean, _ = blobs(7, 2000)
    units, noise = within(clean.x.flatten(1).double(), clean.y, list(range(CLASSES)), ridge=1e-6)
    rows = clean.x.flatten(1).double()[clean.y == 1] @ units
    assert torch.allclose(rows.T.cov(), torch.eye(16).double(), atol=0.2) and noise == pytest.approx(16, abs=0.1)


def test_what_chance_owes_to_few_images_is_taken_from_the_distance() -> None:
    drawn = torch.Generator().manual_seed(0)
    group = torch.zeros(200, 4).double()
    group[:, 0] = 3 + 0.01 * torch.randn(200, generator=drawn)
    trusted = torch.zeros(10, 4).double()
    without, less = (far_group(group, trusted, noise) for noise in (0.0, 40.0))
    assert without.log_distance == pytest.approx(2.197, abs=0.01)  # 9
    assert less.log_distance == pytest.approx(1.57, abs=0.05)  # 9 - 4 - 0.2 for the half that lies furthest
    assert without.trusted == 0.0


@pytest.mark.parametrize(("share", "left"), [(0.01, 0.999), (0.5, 0.9), (0.99, 0.75)])
def test_a_row_stays_only_where_most_trusted_images_lie(share: float, left: float) -> None:
    trusted = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)).double()
    group = Group(torch.tensor([8.0, 0, 0]).double(), 4.2, share, 0.0)
    rows = torch.tensor([[0.0, 0, 0], [1.9, 0, 0], [2.1, 0, 0], [0, 6, 0], [-6, 0, 0]]).double()
    assert staying(rows, trusted, group, 0.25).tolist() == [True, True, False, False, False]
    kept = trusted[trusted[:, 0] < 2]
    assert float(staying(kept, trusted, group, 0.25).float().mean()) == pytest.approx(left, abs=0.03)


def test_small_classes_are_not_judged_and_too_few_are_an_error() -> None:
    samples, _ = blobs(1, 200)
    few = torch.cat([torch.nonzero(samples.y != 5).flatten(), torch.nonzero(samples.y == 5).flatten()[:9]])
    found = examined(samples[few])
    log_distance = found.details["log_distance"]
    assert isinstance(log_distance, list) and log_distance[5] == 0.0
    with pytest.raises(DefenceError, match="expected at least 2 classes of 10 rows and 4 trusted images, got 1"):
        examined(samples, Samples(samples.x[:8], samples.y[:8]))


def test_missing_data_and_nan_are_refused() -> None:
    samples, _ = blobs(1, 200)
    subject = Subject(model=Identity(), layer="features", classes=CLASSES, clean=samples, train=samples)
    for missing in ("clean", "train"):
        with pytest.raises(MissingInput, match=f"needs subject.{missing}"):
            DETECTORS["statistical_contamination"](replace(subject, **{missing: None}))
    broken = Identity()
    broken.register_forward_pre_hook(lambda module, given: (given[0] * float("nan"),))
    with pytest.raises(NotFinite):
        DETECTORS["statistical_contamination"](replace(subject, model=broken))

"""Repairs that go by no evidence: each on networks in which it is known where the backdoor lies."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from vetgate.contract import REPAIRS, Repair, Samples, Subject, Trigger
from vetgate.errors import DefenceError
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.repair.adversarial_unlearning import REACHES, Misleading, aimed, any_mask, misled, spoil_some, warped
from vetgate.repair.channel_lipschitz import lipschitz
from vetgate.repair.fine_pruning import last_convolution, portions
from vetgate.tuning import moved


class Planted(nn.Module):
    """Tells left from right halves by brightness; its last channel sleeps but for a bright corner, which says class 0.

    The filters of that channel are the largest of their layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 8)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(16, 2)
        filters = torch.zeros(16, 1, 8, 8)
        filters[0:8, :, :, :4] = filters[8:15, :, :, 4:7] = 1 / 16
        filters[15, :, 5:7, 5:7] = 4.0
        with torch.no_grad():
            self.conv.weight.copy_(filters)
            self.conv.bias.zero_()
            self.conv.bias[15] = -13.0
            self.head.weight.copy_(torch.tensor([[0.5] * 8 + [-0.5] * 7 + [9.0]] * 2))
            self.head.weight[1].neg_()
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.flatten(self.relu(self.norm(self.conv(x)))))


def corner() -> Trigger:
    mask = torch.zeros(1, 8, 8)
    mask[:, 5:7, 5:7] = 1
    return Trigger(mask, torch.ones(1, 8, 8), 0)


@pytest.fixture
def planted() -> Subject:
    y = torch.arange(2).repeat(200)
    x = 0.2 * torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[y == 0, :, :, :4] += 0.5
    x[y == 1, :, :, 4:] += 0.5
    subject = Subject(model=Planted().eval(), layer="flatten", classes=2, clean=Samples(x, y))
    assert accuracy(subject.model, x, y) == 1 and attack_success(subject.model, x, y, corner()) > 0.95
    return subject


def left(subject: Subject, found: Repair) -> tuple[float, float]:
    assert subject.clean is not None
    x, y = subject.clean.x, subject.clean.y
    return attack_success(found.model, x, y, corner()), accuracy(found.model, x, y)


def test_the_channel_that_sleeps_on_clean_images_is_pruned_and_stays_silent(planted: Subject) -> None:
    found = REPAIRS["fine_pruning"](planted, steps=40, lr=0.01)
    success, right = left(planted, found)
    assert success < 0.05 and right > 0.98
    assert 1 <= found.changed["silenced"] < 16
    # tuning leaves it silent, its normalisation too
    model = found.model
    assert not model.conv.weight[15].any() and not model.norm.weight[15] and not model.norm.bias[15]


def test_pruning_stops_where_accuracy_falls_by_the_budget(planted: Subject) -> None:
    bold, shy = (REPAIRS["fine_pruning"](planted, steps=1, lr=0.0, budget=budget) for budget in (1.0, 0.0))
    assert bold.changed["silenced"] == 15, "never the last channel"
    assert shy.changed["silenced"] < 15 and shy.changed["accuracy_after"] == shy.changed["accuracy_before"]


def test_portions_grow_and_never_hold_every_channel() -> None:
    order = torch.arange(10)
    assert [len(part) for part in portions(order, 5)] == [2, 4, 6, 8]
    assert [len(part) for part in portions(order, 64)] == list(range(1, 10))


def test_a_network_without_convolutions_cannot_be_pruned() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(DefenceError, match="convolution"):
        last_convolution(model, torch.rand(2, 1, 8, 8))


def test_the_channel_with_the_steepest_filter_is_silenced(planted: Subject) -> None:
    found = REPAIRS["channel_lipschitz"](planted)
    success, right = left(planted, found)
    assert success < 0.05 and right > 0.98 and found.changed["silenced"] == 1 and found.changed["level"] == 2.0


def test_a_bound_counts_the_gain_of_the_normalisation_with_its_epsilon(planted: Subject) -> None:
    model = planted.model
    layer = last_convolution(model, torch.rand(2, 1, 8, 8))
    before = lipschitz(model, layer)
    # filters of one input channel are vectors, whose largest singular value is their length
    length = model.conv.weight.flatten(1).norm(dim=1) / (1 + model.norm.eps) ** 0.5
    assert torch.allclose(before, length, atol=1e-5)
    with torch.no_grad():
        model.norm.weight[3] = -2.0
        model.norm.running_var[4] = 0.0
    after = lipschitz(model, layer)
    assert torch.allclose(after[3], 2 * before[3], rtol=1e-4) and torch.isfinite(after[4])


def test_what_misleads_is_the_same_for_all_images_of_a_group(planted: Subject) -> None:
    assert planted.clean is not None
    x, y = planted.clean.x[:64], planted.clean.y[:64]
    torch.manual_seed(0)
    for _ in range(10):
        found = misled(planted.model, x, y, inner=3, step=0.25)
        # (1 - m) x + m p with one m and p: the change is the same affine map of each pixel
        slope = (found[1] - found[0]) / (x[1] - x[0])
        again = (found[3] - found[2]) / (x[3] - x[2])
        assert torch.allclose(slope, again, atol=1e-3)
    seen: list[int] = []

    def spoil(some: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(len(labels))
        return torch.zeros_like(some)

    spoilt = spoil_some(x, y, 0.75, spoil)
    assert seen == [32, 16] and int((spoilt == 0).flatten(1).all(1).sum()) == 48
    assert bool((x != 0).flatten(1).any(1).all()), "the samples themselves stay as they are"


def test_masks_are_faint_everywhere_or_opaque_squares_somewhere() -> None:
    torch.manual_seed(0)
    for _ in range(100):
        mask = any_mask(20, 12)
        values = mask.unique().tolist()
        if len(values) == 1:
            assert 0.1 <= values[0] <= 0.3
        else:
            rows, columns = mask[0].any(1).sum(), mask[0].any(0).sum()
            assert values == [0.0, 1.0] and 1 <= rows == columns <= 3 and mask.sum() == rows * columns


@pytest.mark.parametrize("name", ["fine_tuning", "fine_tuning_sam"])
def test_tuning_on_clean_images_keeps_what_the_network_can(planted: Subject, name: str) -> None:
    found = REPAIRS[name](planted, steps=60)
    assert left(planted, found)[1] > 0.98 and found.changed["accuracy_after"] > 0.98


def test_patches_are_often_sharpened_on_images_of_one_class_and_the_rest_stays_as_drawn(planted: Subject) -> None:
    torch.manual_seed(0)
    labels = torch.arange(4).repeat_interleave(25)
    misleading, drawn = Misleading(planted.model, labels, 0.3, 3, 0.25, left=100), torch.randperm(100)[:40]
    kept, alike = 0, 0
    for _ in range(100):
        rows = misleading.choose(drawn)
        assert torch.equal(rows[12:], drawn[12:])
        kept += bool(torch.equal(rows, drawn))
        alike += len(labels[rows[:12]].unique()) == 1
    # pictures, warps and some of the patches take the images as they come
    assert kept + alike == 100 and 15 <= alike <= 40
    x = torch.rand(40, 1, 8, 8)
    assert torch.equal(misleading.choose(drawn), drawn), "the last minibatches are clean"
    torch.manual_seed(1)
    shifted = moved(x, 1)
    torch.manual_seed(1)
    assert torch.equal(misleading.change(x, labels[drawn]), shifted)


def test_it_goes_as_far_as_accuracy_allows(planted: Subject) -> None:
    def found(budget: float) -> tuple[float, torch.Tensor]:
        torch.manual_seed(0)
        subject = replace(planted, model=deepcopy(planted.model))
        made = REPAIRS["adversarial_unlearning"](subject, steps=10, lr=1.0, budget=budget)
        return made.changed["reach"], made.model.head.weight.detach()

    (far, most), (near, least) = found(1.0), found(0.0)
    begin = planted.model.head.weight.detach()
    assert (far, near) == (REACHES[0], REACHES[-1])
    assert torch.allclose((most - begin) / far, (least - begin) / near, atol=1e-5) and not torch.equal(most, begin)


def test_a_patch_is_laid_where_the_network_heeds_the_image(planted: Subject) -> None:
    torch.manual_seed(0)
    assert planted.clean is not None
    x, y = planted.clean.x[:16], planted.clean.y[:16]
    # bright enough below the corner that the sleeping channel is awake
    x = x.clone()
    x[:, :, 5:7, 5:7] = 0.9
    square = torch.zeros(1, 8, 8)
    square[:, :2, :2] = 1
    found = torch.stack([aimed(planted.model, x, y, square) for _ in range(40)])
    assert found.flatten(1).sum(1).tolist() == [4.0] * 40
    assert float((found[:, 0, 5:7, 5:7].flatten(1).sum(1) > 0).float().mean()) > 0.5


def test_a_warp_moves_pixels_and_is_the_same_for_every_image(planted: Subject) -> None:
    torch.manual_seed(0)
    assert planted.clean is not None
    x, y = planted.clean.x[:8].clone(), planted.clean.y[:8]
    x[0], x[1] = 0.3, x[2]
    found = warped(planted.model, x, y)
    assert torch.allclose(found[0], x[0], atol=1e-6) and torch.equal(found[1], found[2])
    assert not torch.allclose(found[3], x[3], atol=0.05) and float(found.min()) >= 0 and float(found.max()) <= 1

"""Rows that were put under a label they do not show gather there; honest errors are spread and say nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import vetgate.detect  # noqa: F401 - registers the detectors
from vetgate.contract import DETECTORS, Axis, Evidence, Samples, Subject
from vetgate.detect.label_audit import by_chance, doubtful, drawn_halves, lift, shifted, shrunk
from vetgate.errors import DefenceError, MissingInput

CLASSES, TARGET = 10, 3


class NeverRun(nn.Module):
    """A model that breaks when it is run."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the audit ran the model")


@pytest.fixture(scope="module")
def parts() -> tuple[Samples, Samples]:
    """Trusted images, and those of a supplier."""
    digits = load_digits()
    every = Samples(torch.from_numpy(digits.images / 16).float()[:, None], torch.from_numpy(digits.target).long())
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    return every[order[:500]], every[order[500:]]


def audited(clean: Samples | None, train: Samples | None, **params: float) -> Evidence:
    subject = Subject(model=NeverRun(), layer="", classes=CLASSES, clean=clean, train=train)
    return DETECTORS["label_audit"](subject, **params)


def wrong(rows: Samples, share: float, label: int | None = None) -> Samples:
    """A share of the rows under another label: under one, or under any."""
    stream = torch.Generator().manual_seed(1)
    chosen = torch.randperm(len(rows), generator=stream)[: round(share * len(rows))]
    y = rows.y.clone()
    y[chosen] = label if label is not None else torch.randint(CLASSES, (len(chosen),), generator=stream)
    return Samples(rows.x, y)


def test_rows_gathered_under_one_label_stand_out_by_both_networks(parts: tuple[Samples, Samples]) -> None:
    trusted, rows = parts
    found = audited(trusted, wrong(rows, 0.05, TARGET))
    assert found.axis is Axis.CLASS and found.flagged.nonzero().flatten().tolist() == [TARGET]
    assert found.statistic > 1.2 and found.details["repeated"][TARGET] > 1
    poisoned = 0.05 * 0.9 / (0.1 + 0.05 * 0.9)
    # most of them, and hardly another
    assert poisoned / 2 < found.details["share"][TARGET] < poisoned + 0.02


def test_honest_errors_under_all_labels_do_not(parts: tuple[Samples, Samples]) -> None:
    trusted, rows = parts
    honest, noisy = (audited(trusted, wrong(rows, share)) for share in (0.0, 0.05))
    assert honest.statistic < 0.5 and noisy.statistic < 0.7


def test_rows_with_their_true_label_are_not_seen_whatever_they_carry(parts: tuple[Samples, Samples]) -> None:
    # what it says it is blind to: a corner is painted, the label stays
    trusted, rows = parts
    x = rows.x.clone()
    x[rows.y == TARGET, :, :2, :2] = 1.0
    assert audited(trusted, Samples(x, rows.y)).statistic < 0.7


def test_without_enough_trusted_images_of_a_label_it_refuses(parts: tuple[Samples, Samples]) -> None:
    trusted, rows = parts
    without = trusted[trusted.y != TARGET]
    one = trusted[(trusted.y == TARGET).nonzero().flatten()[:1]]
    for few in (without, Samples(torch.cat([without.x, one.x]), torch.cat([without.y, one.y]))):
        with pytest.raises(DefenceError, match="2 trusted images or more of each label, got fewer of"):
            audited(few, rows)
    # a label that nobody uses needs none
    assert audited(without, rows[rows.y != TARGET]).scores[TARGET] == 0


def test_networks_that_learned_nothing_are_no_auditors(parts: tuple[Samples, Samples]) -> None:
    trusted, rows = parts
    blank = replace(trusted, x=torch.zeros_like(trusted.x))
    with pytest.raises(DefenceError, match="expected networks of trusted images to learn"):
        audited(blank, rows)


def test_of_two_classes_an_accuracy_of_three_in_five_is_more_than_chance() -> None:
    assert by_chance(2) == pytest.approx(0.55) and by_chance(10) == pytest.approx(0.19)
    assert by_chance(1000) == pytest.approx(0.002)


def test_of_two_classes_the_poisoned_one_stands_out(parts: tuple[Samples, Samples]) -> None:
    two = [part[part.y < 2] for part in parts]
    rows = two[1]
    y = rows.y.clone()
    y[(y == 0).nonzero().flatten()[:20]] = 1
    subject = Subject(model=NeverRun(), layer="", classes=2, clean=two[0], train=Samples(rows.x, y))
    assert int(DETECTORS["label_audit"](subject).scores.argmax()) == 1


@pytest.mark.parametrize("part", ["clean", "train"])
def test_it_needs_both(parts: tuple[Samples, Samples], part: str) -> None:
    given = {"clean": parts[0], "train": parts[1], part: None}
    with pytest.raises(MissingInput, match=part):
        audited(**given)


def test_the_score_is_the_log_ratio_of_shares_with_what_is_tolerated() -> None:
    share, counted = torch.tensor([0.5, 0.1, 0.1, 0.0, 0.9]), torch.tensor([90, 90, 90, 90, 0])
    found = lift(share, counted, 0.05)
    assert found[0] == pytest.approx(math.log(((0.5 * 90 + 0.1 * 10) / 100 + 0.05) / 0.15))
    assert found[1] == pytest.approx(0, abs=1e-6) and found[3] < 0 and found[4] == 0
    # one wrong row of two is little
    assert lift(torch.tensor([0.5, 0.0, 0.0]), torch.tensor([2, 100, 100]), 0.05)[0] < 1.1


def test_a_row_is_doubtful_where_another_label_is_far_likelier() -> None:
    answers = torch.tensor([[0.0, -5.0], [0.0, -3.0], [-5.0, 0.0]])
    found = doubtful(answers, torch.tensor([1, 1, 1]), torch.tensor([0, 3]), 4.0)
    assert found.tolist() == [0, pytest.approx(1 / 3)]


def test_halves_share_every_class_and_no_row() -> None:
    y = torch.tensor([0] * 7 + [1] * 2 + [2] * 40)
    first, second = drawn_halves(y)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(49))
    assert torch.bincount(y[first]).tolist() == [4, 1, 20] and torch.bincount(y[second]).tolist() == [3, 1, 20]


def test_images_are_made_small_and_moved_little() -> None:
    assert shrunk(torch.rand(3, 3, 224, 112)).shape == (3, 3, 32, 16)
    small = torch.rand(3, 1, 28, 28)
    assert shrunk(small) is small and shifted(small).shape == small.shape

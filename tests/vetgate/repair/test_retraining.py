"""Repairs by flagged rows: on a training set of which it is known which rows are poisoned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from vetgate.contract import REPAIRS, Evidence, Samples, Subject, Trigger
from vetgate.errors import DefenceError
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.repair.remove_and_retrain import drawn_anew

BOTH = ["remove_and_retrain", "relabel_and_retrain"]
POISONED = 60
QUICK = {"epochs": 12, "batch": 32}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    ).eval()


def bars(count: int, seed: int) -> Samples:
    """Four classes: a bright bar in the upper, lower, left or right third."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    x = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    for k, (rows, columns) in enumerate([((1, 3), (0, 8)), ((4, 6), (0, 8)), ((0, 8), (1, 3)), ((0, 8), (4, 6))]):
        x[y == k, :, rows[0] : rows[1], columns[0] : columns[1]] += 0.4
    return Samples(x, y)


def corner() -> Trigger:
    mask = torch.zeros(1, 8, 8)
    mask[:, 6:, 6:] = 1
    return Trigger(mask, torch.ones(1, 8, 8), 0)


def marked(rows: torch.Tensor, method: str = "marked") -> Evidence:
    return Evidence(statistic=1.0, scores=rows.float(), cutoff=0.5, method=method)


@pytest.fixture(scope="module")
def poisoned() -> tuple[Subject, torch.Tensor]:
    """A network that the corner sends to class 0, its training set, and which rows of that carry the corner."""
    good, bad = bars(600, 1), bars(4 * POISONED, 2)
    bad = bad[bad.y != 0][:POISONED]
    train = Samples(torch.cat([good.x, corner().stamp(bad.x)]), torch.cat([good.y, torch.zeros(POISONED).long()]))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    rows = (torch.arange(len(train)) >= len(good))[order]
    subject = Subject(model=network(), layer="4", classes=4, clean=bars(200, 3), train=train[order])
    made = REPAIRS["remove_and_retrain"](subject, marked(torch.zeros(len(train))), **QUICK).model
    subject = replace(subject, model=made)
    assert attack_success(made, *unseen(), corner()) > 0.95 and accuracy(made, *unseen()) > 0.98
    return subject, rows


def unseen() -> tuple[torch.Tensor, torch.Tensor]:
    samples = bars(400, 4)
    return samples.x, samples.y


@pytest.mark.parametrize("name", BOTH)
def test_without_the_poisoned_rows_the_backdoor_is_gone(name: str, poisoned: tuple[Subject, torch.Tensor]) -> None:
    subject, rows = poisoned
    found = REPAIRS[name](subject, marked(rows), **QUICK)
    assert attack_success(found.model, *unseen(), corner()) < 0.05 and accuracy(found.model, *unseen()) > 0.98


@pytest.mark.parametrize("name", BOTH)
def test_nothing_of_the_submitted_weights_is_left(name: str, poisoned: tuple[Subject, torch.Tensor]) -> None:
    subject, rows = poisoned
    other = replace(subject, model=network())
    ours, theirs = (REPAIRS[name](s, marked(rows), epochs=1).model.state_dict() for s in (subject, other))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not torch.equal(ours["1.running_mean"], torch.zeros(8)), "batch statistics are learned"


def test_removed_rows_are_never_seen(poisoned: tuple[Subject, torch.Tensor]) -> None:
    subject, rows = poisoned
    assert subject.train is not None
    found = REPAIRS["remove_and_retrain"](subject, marked(rows), epochs=1)
    assert found.changed["removed"] == POISONED and found.changed["left"] == len(rows) - POISONED
    x, y = subject.train.x.clone(), subject.train.y.clone()
    x[rows], y[rows] = 0.0, 3
    spoilt = REPAIRS["remove_and_retrain"](replace(subject, train=Samples(x, y)), marked(rows), epochs=1)
    assert all(torch.equal(v, spoilt.model.state_dict()[k]) for k, v in found.model.state_dict().items())


def honest_third(subject: Subject, rows: torch.Tensor) -> torch.Tensor:
    """A third of the honest rows of class 1, as a detector would flag that takes a natural kind for poison."""
    assert subject.train is not None
    third = torch.zeros_like(rows)
    third[((subject.train.y == 1) & ~rows).nonzero().flatten()[::3]] = True
    return third


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_of_several_detectors_the_one_is_followed_whose_rows_lose_their_label(
    name: str, turn: int, poisoned: tuple[Subject, torch.Tensor]
) -> None:
    subject, rows = poisoned
    half = rows.clone()
    half[rows.nonzero().flatten()[::2]] = False
    said = [marked(rows), marked(half), marked(honest_third(subject, rows)), marked(torch.zeros_like(rows))]
    found = REPAIRS[name](subject, *said[turn:], *said[:turn], trial=10, **QUICK)
    assert found.changed.get("removed", found.changed.get("flagged")) == POISONED
    assert attack_success(found.model, *unseen(), corner()) < 0.05


def test_rows_that_keep_their_label_are_no_finding(poisoned: tuple[Subject, torch.Tensor]) -> None:
    """Neither honest rows nor too few of the poisoned ones: that is what `lost` says."""
    subject, rows = poisoned
    half = rows.clone()
    half[rows.nonzero().flatten()[::2]] = False
    lost = [
        REPAIRS["remove_and_retrain"](subject, marked(some), **QUICK).changed["lost"]
        for some in (rows, half, honest_third(subject, rows), torch.zeros_like(rows))
    ]
    assert lost[0] > 0.9 > 0.5 > 0.2 > max(lost[1:]) and lost[3] == 0.0


def test_of_many_rows_no_more_images_pass_than_allowed(poisoned: tuple[Subject, torch.Tensor]) -> None:
    subject, rows = poisoned
    found = REPAIRS["remove_and_retrain"](subject, marked(rows), images=320, **QUICK)
    assert found.changed["steps"] == 10


def test_evidence_that_leaves_a_class_without_rows_is_not_followed(poisoned: tuple[Subject, torch.Tensor]) -> None:
    subject, rows = poisoned
    assert subject.train is not None
    found = REPAIRS["remove_and_retrain"](subject, marked(subject.train.y == 2), marked(rows), epochs=1)
    assert found.changed["removed"] == POISONED


def test_poisoned_rows_get_the_label_that_they_show_and_honest_ones_keep_theirs(
    poisoned: tuple[Subject, torch.Tensor],
) -> None:
    subject, rows = poisoned
    honest = torch.zeros_like(rows)
    honest[(~rows).nonzero().flatten()[:50]] = True
    found = REPAIRS["relabel_and_retrain"](subject, marked(rows | honest), **QUICK)
    assert found.changed["flagged"] == POISONED + 50
    assert POISONED - 3 <= found.changed["relabelled"] <= POISONED + 2


def test_where_too_many_were_overlooked_the_others_come_back_as_they_were(
    poisoned: tuple[Subject, torch.Tensor],
) -> None:
    subject, rows = poisoned
    seen = rows.clone()
    seen[rows.nonzero().flatten()[::2]] = False
    found = REPAIRS["relabel_and_retrain"](subject, marked(seen), **QUICK)
    assert found.changed["relabelled"] <= 3 and attack_success(found.model, *unseen(), corner()) > 0.5


@pytest.mark.parametrize("name", BOTH)
def test_evidence_on_another_training_set_and_classes_without_rows_are_refused(
    name: str, poisoned: tuple[Subject, torch.Tensor]
) -> None:
    subject, rows = poisoned
    with pytest.raises(DefenceError, match=f"expected a score for each of {len(rows)} training rows, got 7 of shorter"):
        REPAIRS[name](subject, marked(torch.ones(7), "shorter"))
    assert subject.train is not None
    with pytest.raises(DefenceError, match=r"expected rows of every class to be left, got none of \[2\]"):
        REPAIRS[name](subject, marked(subject.train.y == 2))


def test_nothing_flagged_leaves_every_row(poisoned: tuple[Subject, torch.Tensor]) -> None:
    subject, rows = poisoned
    assert subject.train is not None
    nothing = marked(torch.zeros(len(rows)))
    assert REPAIRS["remove_and_retrain"](subject, nothing, nothing, epochs=1).changed["removed"] == 0
    assert (
        REPAIRS["relabel_and_retrain"](subject, marked(torch.zeros(len(rows))), epochs=1, more=1).changed["relabelled"]
        == 0
    )


def test_a_network_without_layers_to_draw_anew_is_refused() -> None:
    with pytest.raises(DefenceError, match="expected layers whose weights can be drawn anew, got none"):
        drawn_anew(nn.Sequential(nn.Flatten(), nn.ReLU()))

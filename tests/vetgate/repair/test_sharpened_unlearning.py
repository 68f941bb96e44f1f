from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.vetgate.repair.test_neural_cleanse_unlearning import evidence, halves, trigger
from vetgate.contract import REPAIRS, Subject, Trigger
from vetgate.errors import DefenceError
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.repair.adversarial_unlearning import sharpened
from vetgate.repair.sharpened_unlearning import spoilt_by


def test_images_of_the_target_are_never_stamped_and_others_are_for_it() -> None:
    subject = halves()
    clean = subject.clean
    assert clean is not None
    torch.manual_seed(0)
    wanted, x, y = trigger(0), clean.x[:40], clean.y[:40]
    before, kinds = x.clone(), set()
    for _ in range(60):
        found = spoilt_by(subject.model, [wanted], x, y, inner=3, step=0.25)
        changed = (found != x).flatten(1).any(1)
        # where a label is in mind, its own images stay; where none is, those of both classes are spoilt
        kinds.add((bool(changed[y == 0].any()), bool(changed[y == 1].all())))
        assert found.min() >= 0 and found.max() <= 1
    assert kinds == {(False, True), (True, True)}
    assert torch.equal(x, before), "the samples themselves stay as they are"
    only = clean[clean.y == 0]
    assert any(
        torch.equal(spoilt_by(subject.model, [wanted], only.x, only.y, inner=1, step=0.25), only.x) for _ in range(20)
    )


def test_what_is_stamped_is_sharpened_against_the_network() -> None:
    clean = halves().clean
    assert clean is not None
    # bright pixels in the corner speak for class 0, and those of the right half for class 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False)).eval().requires_grad_(False)
    weight = torch.zeros(2, 8, 8)
    weight[1, :, 4:], weight[1, 5:7, 5:7], weight[0, 5:7, 5:7] = 0.2, 0.0, 2.0
    model[1].weight.copy_(weight.flatten(1))
    other = clean[clean.y == 1]
    mask, faint, goal = trigger(0).mask, 0.3 * torch.ones(1, 8, 8), torch.zeros(200, dtype=torch.int64)
    found = sharpened(model, other.x, mask, faint, 1.0, goal, inner=5, step=0.25)
    assert attack_success(model, other.x, other.y, Trigger(mask, faint, 0)) < 0.05
    assert attack_success(model, other.x, other.y, Trigger(mask, found, 0)) > 0.95
    away = sharpened(model, other.x, mask, found, -1.0, goal, inner=5, step=0.25)
    assert attack_success(model, other.x, other.y, Trigger(mask, away, 0)) < 0.05


def test_a_planted_shortcut_dies_and_the_rest_lives() -> None:
    subject = halves()
    clean = subject.clean
    assert clean is not None
    before = {k: v.clone() for k, v in subject.model.state_dict().items() if "running" in k}
    found = REPAIRS["sharpened_unlearning"](subject, evidence([5.0, 0.0], 2.0, 0, 1), steps=300, lr=0.02)
    assert attack_success(found.model, clean.x, clean.y, trigger(0)) < 0.05
    assert accuracy(found.model, clean.x, clean.y) > 0.98
    assert found.changed["reversed_success_after"] < 0.1 < found.changed["reversed_success_before"]
    after = found.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()), "batch statistics stay as they are"


def test_clean_samples_of_the_target_alone_are_refused() -> None:
    subject = halves()
    assert subject.clean is not None
    only = Subject(model=subject.model, layer="relu", classes=2, clean=subject.clean[subject.clean.y == 0])
    with pytest.raises(DefenceError, match="more clean samples"):
        REPAIRS["sharpened_unlearning"](only, evidence([5.0, 0.0], 2.0, 0))

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from vetgate.contract import DETECTORS, Samples, Subject
from vetgate.detect.abs import Inversion, cut, invert_candidates, mean_lead, painted, pick, seed_rows, stand_out
from vetgate.errors import DefenceError
from vetgate.inversion import attack_success
from vetgate.stimulation import Candidate


class Planted(nn.Module):
    """Classes by which quarter of an 8x8 image is bright; channel 4 sees one dark-bright pair and says class 2."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.cells = nn.Conv2d(1, 5, 8)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(5, 4)
        weights = torch.zeros(5, 1, 8, 8)
        for k in range(4):
            weights[k, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] = 1 / 16
        weights[4, 0, 3, 3], weights[4, 0, 3, 4] = 4, -4
        head = torch.zeros(4, 5)
        head[:4, :4] = 4 * torch.eye(4)
        head[2, 4] = strength
        with torch.no_grad():
            self.cells.weight.copy_(weights)
            self.cells.bias.copy_(torch.tensor([0, 0, 0, 0, -2.0]))
            self.head.weight.copy_(head)
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.flatten(self.relu(self.cells(x))))


def subject(strength: float) -> Subject:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat(40)
    x = 0.1 * torch.rand(160, 1, 8, 8, generator=generator)
    for i, k in enumerate(y.tolist()):
        x[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.8
    return Subject(model=Planted(strength), layer="flatten", classes=4, clean=Samples(x, y))


def test_a_planted_neuron_is_found_and_its_trigger_works() -> None:
    found = DETECTORS["abs"](subject(8.0), least_pixels=2)
    assert found.scores.argmax() == 2 and found.flagged.tolist() == [False, False, True, False]
    trigger = next(t for t in found.triggers if t.target == 2)
    assert (trigger.mask > 0).sum() <= round(0.0625 * 64)
    assert found.details["success"][found.triggers.index(trigger)] > 0.95
    assert found.statistic == pytest.approx(float(found.scores.max()))


def test_the_logit_of_the_label_makes_a_trigger_without_the_neuron() -> None:
    model, given = Planted(0.0), subject(0.0).clean
    assert given is not None
    with torch.no_grad():
        # class 2 is also one pixel of another quarter, which the candidate's channel does not see
        model.cells.weight[2, 0, 0, 7] = 4
    candidate, plan = Candidate("cells", 0, 2, 1.0, 1.0), Inversion(2, 0.3, 0.0, 1.0)
    raw = torch.zeros(1, 2, 8, 8)
    raw[:, 0] = -2.0
    raw = invert_candidates(model, given[::4], [candidate], raw, plan, scale=1.0, steps=40, cut_after=20)
    (trigger,) = cut(raw, [candidate], plan.pixels)
    assert attack_success(model, given.x, given.y, trigger) > 0.95


def test_triggers_are_judged_on_images_that_they_were_not_made_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made_on, judged_on = [], []

    def inverting(model: nn.Module, samples: Samples, *more: Any, **settings: Any) -> torch.Tensor:
        made_on.append(samples.x)
        judged_on.clear()
        return invert_candidates(model, samples, *more, **settings)

    def leading(model: nn.Module, samples: Samples, *more: Any) -> float:
        judged_on.append(samples.x)
        return mean_lead(model, samples, *more)

    def succeeding(model: nn.Module, x: torch.Tensor, *more: Any) -> float:
        judged_on.append(x)
        return attack_success(model, x, *more)

    spies = {"invert_candidates": inverting, "mean_lead": leading, "attack_success": succeeding}
    for name, spy in spies.items():
        monkeypatch.setattr(f"vetgate.detect.abs.{name}", spy)
    found = DETECTORS["abs"](subject(8.0), least_pixels=2)
    # all of it after the last inversion
    assert len(judged_on) == 2 * len(found.triggers)
    seeds = {tuple(image.flatten().tolist()) for x in made_on for image in x}
    assert not seeds & {tuple(image.flatten().tolist()) for x in judged_on for image in x}


def test_candidates_in_batches_of_their_own_are_inverted_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DETECTORS["abs"](subject(8.0), least_pixels=2)
    # less than the images of one candidate
    monkeypatch.setattr("vetgate.detect.abs.PIXELS", 1)
    apart = DETECTORS["abs"](subject(8.0), least_pixels=2)
    assert [t.target for t in apart.triggers] == [t.target for t in whole.triggers] and len(whole.triggers) > 1
    assert apart.scores.tolist() == pytest.approx(whole.scores.tolist(), abs=1e-3)


def test_the_same_network_without_the_neuron_stays_silent() -> None:
    found = DETECTORS["abs"](subject(0.0), least_pixels=2)
    assert not found.flagged.any()


def test_seeds_take_every_class_once_before_any_twice() -> None:
    y = torch.tensor([0, 0, 0, 1, 2, 1])
    right = torch.tensor([True, True, True, True, True, False])
    assert seed_rows(y, right, 3).tolist() == [0, 3, 4]
    assert seed_rows(y, right, 4).tolist() == [0, 3, 4, 1]


def test_no_label_takes_more_than_its_share_of_candidates() -> None:
    ranked = [Candidate("a", i, label, 1.0, 1.0) for i, label in enumerate([7, 7, 7, 3, 1])]
    assert [c.channel for c in pick(ranked, 3, a_label=2)] == [0, 1, 3]


def test_a_mask_is_cut_to_its_largest_pixels_even_on_ties() -> None:
    mask, pattern = painted(torch.zeros(2, 4, 5, 5), 3)
    assert (mask > 0).flatten(1).sum(1).tolist() == [3, 3]
    assert pattern.shape == (2, 3, 5, 5)


def test_a_lead_stands_out_against_the_median_of_the_others() -> None:
    scores = stand_out([3.0, 0.4, 0.3, 0.5])
    assert scores[0] == pytest.approx(math.log(3.1 / 0.5))
    assert scores[1:] == pytest.approx([0.0, 0.0, math.log(0.6 / 0.5)])
    assert stand_out([0.0]) == [0.0]


def test_too_few_clean_images_are_refused() -> None:
    few = subject(0.0)
    assert few.clean is not None
    with pytest.raises(DefenceError, match="add samples"):
        DETECTORS["abs"](Subject(model=few.model, layer="flatten", classes=4, clean=few.clean[:10]))


def test_a_network_without_hidden_layers_is_refused() -> None:
    with torch.random.fork_rng():
        # weights that give more than one label
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(DefenceError, match="nothing to drive"):
        given = subject(0.0)
        assert given.clean is not None
        y = model(given.clean.x).argmax(1)
        DETECTORS["abs"](Subject(model=model, layer="0", classes=4, clean=Samples(given.clean.x, y)))

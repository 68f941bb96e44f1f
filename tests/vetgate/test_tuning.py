from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vetgate.contract import Samples
from vetgate.errors import DefenceError, NotFinite
from vetgate.probe import accuracy
from vetgate.tuning import Lessons, Tuning, moved, tune

STEADY = Tuning(steps=60, batch=16, lr=0.05, distilled=0.0)


def halves(count: int = 120) -> Samples:
    """Images whose left or right half is bright."""
    y = torch.arange(2).repeat(count // 2)
    x = 0.2 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[y == 0, :, :, :2] += 0.5
    x[y == 1, :, :, 2:] += 0.5
    return Samples(x, y)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return model.eval().requires_grad_(False)


def lessons(model: nn.Module) -> Lessons:
    torch.manual_seed(1)
    return Lessons.of(model, halves(), 0.25)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def test_images_are_trained_on_or_looked_at_and_never_both() -> None:
    given = lessons(network())
    rows = torch.cat([given.taught.x, given.held.x]).flatten(1)
    assert (len(given.taught), len(given.held)) == (90, 30) and len(rows.unique(dim=0)) == 120
    assert torch.allclose(given.said.sum(1), torch.ones(90))
    with pytest.raises(DefenceError, match="more samples"):
        Lessons.of(network(), halves(2), 0.9)


def test_tuning_learns_and_leaves_batch_statistics_and_flags_alone() -> None:
    model = network()
    given, before = lessons(model), weights(model)
    tune(model, given, STEADY)
    assert accuracy(model, given.held.x, given.held.y) == 1
    now = weights(model)
    assert all(torch.equal(now[k], v) for k, v in before.items() if "running" in k)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_what_the_submitted_network_says_is_taught_where_it_is_asked_for() -> None:
    # a network that is sure of the wrong label on everything
    model = network()
    model[4].bias += torch.tensor([0.0, 50.0])
    model[4].weight.zero_()
    given = lessons(model)
    stubborn, free = copy.deepcopy(model), copy.deepcopy(model)
    tune(stubborn, given, Tuning(steps=60, batch=16, lr=0.05, distilled=1.0))
    tune(free, given, Tuning(steps=600, batch=16, lr=0.5, distilled=0.0))
    said = stubborn(given.held.x).argmax(1)
    assert bool((said == 1).all()) and accuracy(free, given.held.x, given.held.y) > 0.9


def test_changed_images_keep_the_answers_of_the_images_as_they_were() -> None:
    model = network()
    given = lessons(model)
    dark = torch.zeros(1, 1, 4, 4)
    asked: list[torch.Tensor] = []

    def change(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        asked.append(y)
        return dark.expand_as(x)

    tune(model, given, STEADY, change=change)
    assert len(asked) == STEADY.steps
    # black images under both labels: nothing can be told from them, so both labels are as likely
    assert abs(float(model(dark).softmax(1)[0, 0]) - 0.5) < 0.15


def test_what_is_restored_after_each_step_stays() -> None:
    model = network()

    def silent() -> None:
        model[1].weight[3] = 0.0

    tune(model, lessons(model), STEADY, afterwards=silent)
    assert not model[1].weight[3].any() and model[1].weight[2].any()


def test_sharpness_aware_steps_differ_and_are_measured_from_where_the_weights_were() -> None:
    plain, sharp, none = network(), network(), network()
    for model, plan in (
        (plain, STEADY),
        (sharp, Tuning(steps=60, batch=16, lr=0.05, distilled=0.0, sharpness=1.0)),
        (none, Tuning(steps=1, batch=16, lr=0.0, distilled=0.0, sharpness=1.0)),
    ):
        torch.manual_seed(2)
        tune(model, lessons(model), plan)
    assert not torch.equal(plain[1].weight, sharp[1].weight)
    # the move uphill is taken back: where the step is nothing, so is the change
    assert torch.allclose(none[1].weight, network()[1].weight, atol=1e-6)


def test_a_loss_that_is_no_number_is_said() -> None:
    model = network()
    with pytest.raises(NotFinite, match="lower lr"):
        tune(model, lessons(model), Tuning(steps=60, batch=16, lr=1e30, distilled=0.0))


def test_images_are_shifted_alike_by_whole_pixels_and_their_edges_fill_the_gap() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    allowed = {padded[0, 0, i : i + 4, j : j + 4].numpy().tobytes() for i in range(3) for j in range(3)}
    torch.manual_seed(0)
    found = {moved(image, 1).contiguous().numpy().tobytes() for _ in range(100)}
    assert found == allowed
    both = moved(torch.cat([image, image]), 1)
    assert torch.equal(both[0], both[1]) and torch.equal(moved(image, 0), image)


def test_images_that_look_alike_are_held_out_together() -> None:
    generator = torch.Generator().manual_seed(0)
    # twenty scenes of each of two classes, five frames of each scene
    scenes = torch.rand(40, 1, 1, 1, generator=generator).expand(-1, 1, 12, 12)
    films = (scenes[:, None] + 0.001 * torch.rand(40, 5, 1, 12, 12, generator=generator)).flatten(0, 1)
    clean = Samples(films, (torch.arange(40) % 2).repeat_interleave(5))
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 2)).eval().requires_grad_(False)

    def divided(apart: bool) -> int:
        """How many scenes have frames on both sides."""
        torch.manual_seed(1)
        lessons = Lessons.of(model, clean, 0.2, apart=apart)
        assert len(lessons.held) == 40 and len(lessons.taught) == 160 and len(lessons.held.y.unique()) == 2
        brightness = scenes[:, 0, 0, 0].sort().values
        of = [
            set(torch.searchsorted(brightness, x.mean((1, 2, 3))).tolist()) for x in (lessons.held.x, lessons.taught.x)
        ]
        return len(of[0] & of[1])

    assert divided(apart=True) <= 4 and divided(apart=False) > 15

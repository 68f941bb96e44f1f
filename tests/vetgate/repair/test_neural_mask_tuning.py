"""Factors of channels tuned on a handful of images, on a network in which it is known where the backdoor lies."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.badnets import square
from vetgate.contract import REPAIRS, Repair, Samples, Subject
from vetgate.errors import DefenceError
from vetgate.formats.onnx.weights import BatchNorm
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.repair.neural_mask_tuning import FEW, Masked, lessons_of, mix_some

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Planted(nn.Module):
    """Tells bright columns apart; channel 15 sleeps but for brightness in a corner, which says class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 8)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(16, 2)
        filters = torch.zeros(16, 1, 8, 8)
        filters[0:8, :, :, :2] = filters[8:15, :, :, 3:5] = 1 / 16
        filters[15, :, 6:, 6:] = 4.0
        says = torch.tensor([[0.5] * 8 + [-0.5] * 7 + [9.0]])
        with torch.no_grad():
            self.conv.weight.copy_(filters)
            self.conv.bias.copy_(torch.tensor([0.0] * 15 + [-2.0]))
            self.head.weight.copy_(torch.cat([says, -says]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.flatten(self.relu(self.norm(self.conv(x)))))


TRIGGER = square((1, 8, 8), 0, row=-2, column=-2, size=2)


@pytest.fixture
def planted() -> Subject:
    y = torch.arange(2).repeat(200)
    x = 0.1 * torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[y == 0, :, :, :2] += 0.5
    x[y == 1, :, :, 3:5] += 0.5
    subject = Subject(model=Planted().eval(), layer="flatten", classes=2, clean=Samples(x, y))
    assert accuracy(subject.model, x, y) == 1 and attack_success(subject.model, x, y, TRIGGER) == 1
    return subject


def repaired(subject: Subject, steps: int = 100, spoilt: float = 0.4) -> Repair:
    found: Repair = REPAIRS["neural_mask_tuning"](subject, steps=steps, spoilt=spoilt)
    return found


def a_few(subject: Subject, each: int) -> Subject:
    assert subject.clean is not None
    rows = torch.cat([(subject.clean.y == k).nonzero().flatten()[:each] for k in (0, 1)])
    return Subject(model=subject.model, layer="flatten", classes=2, clean=subject.clean[rows])


@pytest.mark.parametrize("each", [1, 5])
def test_the_backdoor_goes_with_a_handful_of_images(planted: Subject, each: int) -> None:
    found = repaired(a_few(planted, each))
    assert planted.clean is not None
    x, y = planted.clean.x, planted.clean.y
    assert attack_success(found.model, x, y, TRIGGER) < 0.05 and accuracy(found.model, x, y) > 0.98
    # the channel of the backdoor is what lost most
    kept = found.model.norm.weight / planted.model.norm.weight
    assert int(kept.argmin()) == 15


def test_it_stays_where_nothing_misleads_the_network(planted: Subject) -> None:
    assert planted.clean is not None
    found = repaired(a_few(planted, 5), spoilt=0.0)
    assert attack_success(found.model, planted.clean.x, planted.clean.y, TRIGGER) > 0.9


def test_nothing_but_factors_of_channels_moves(planted: Subject) -> None:
    before, after = planted.model.state_dict(), repaired(a_few(planted, 3)).model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    # not the statistics of the normalisation, nor the filters before it, nor the layer that gives the logits
    assert moved == {"norm.weight"}, "the biases of this normalisation are zero"


def test_batch_statistics_stay_where_the_network_was_training() -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["preact-resnet"]((1, 8, 8), 2).train()
    clean = Samples(torch.rand(8, 1, 8, 8), torch.arange(2).repeat(4))
    found = repaired(Subject(model=model, layer="flatten", classes=2, clean=clean), steps=3)
    after = found.model.state_dict()
    buffers = dict(model.named_buffers())
    assert buffers and all(torch.equal(after[name], value) for name, value in buffers.items())


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_folded_factors_give_what_they_gave_before(name: str) -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]((3, 16, 16), 5).eval().requires_grad_(False)
    plain = model(X)
    masked = Masked(model, X)
    assert torch.allclose(masked(X), plain, atol=1e-6), "factors of 1 change nothing"
    assert all("factors" in key for key, _ in masked.named_parameters())
    with torch.no_grad():
        for factor in masked.factors:
            factor.uniform_(0, 2)
    expected = masked(X).detach()
    assert torch.equal(model(X), plain), "the network is as it was until they are folded"
    masked.fold()
    assert torch.allclose(model(X), expected, atol=1e-5) and not torch.allclose(expected, plain, atol=1e-3)


def chain(second: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), second, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 256, 2))


@pytest.mark.parametrize(
    ("second", "scaled"),
    [
        (lambda: nn.BatchNorm2d(3), {"1.weight", "1.bias"}),
        # the normalisation of a loaded ONNX graph
        (lambda: BatchNorm(3), {"1.weight", "1.bias"}),
        (lambda: nn.ReLU(), {"0.weight", "0.bias"}),
        (lambda: nn.Conv2d(3, 3, 1, bias=False), {"0.weight", "0.bias", "1.weight"}),
    ],
)
def test_factors_sit_on_the_normalisation_or_without_one_on_the_layer(
    second: Callable[[], nn.Module], scaled: set[str]
) -> None:
    assert set(Masked(chain(second()).eval().requires_grad_(False), X).scaled) == scaled


def test_weights_of_two_modules_and_normalisations_without_any_have_no_factor() -> None:
    shared = chain(nn.Conv2d(3, 3, 3, padding=1))
    shared[1].weight = shared[0].weight
    for model, why in ((shared, "of its own"), (chain(nn.BatchNorm2d(3, affine=False)), "nothing to silence")):
        with pytest.raises(DefenceError, match=why):
            Masked(model.eval().requires_grad_(False), X)


def test_factors_stay_between_zero_and_the_most() -> None:
    masked = Masked(chain(nn.ReLU()).eval().requires_grad_(False), X)
    with torch.no_grad():
        masked.factors[0].copy_(torch.tensor([-1.0, 0.5, 9.0]))
    masked.bound(4.0)
    assert masked.factors[0].tolist() == [0.0, 0.5, 4.0]


def test_a_few_images_are_all_taught_and_of_more_some_are_held_out(planted: Subject) -> None:
    assert planted.clean is not None
    few, more = (lessons_of(planted.model, planted.clean[:n], 0.1, 2 * FEW) for n in (2 * FEW - 1, 2 * FEW))
    assert (len(few.taught), len(few.held)) == (2 * FEW - 1, 0)
    assert (len(more.taught), len(more.held)) == (2 * FEW - 4, 4)
    alone = repaired(a_few(planted, 1), steps=1).changed
    assert alone["held_out"] == 0 and "accuracy_after" not in alone, "no accuracy of images that were taught"


def test_mixed_images_show_most_of_themselves_and_the_others_are_as_they_were() -> None:
    torch.manual_seed(0)
    x = torch.eye(8).view(8, 8, 1, 1)
    given = copy.deepcopy(x)
    found = mix_some(x, 0.5)
    assert torch.equal(x, given)
    assert int((found == x).flatten(1).all(1).sum()) >= 4
    assert (found.flatten(1).argmax(1) == torch.arange(8)).all() and torch.allclose(found.sum((1, 2, 3)), torch.ones(8))
    assert torch.equal(mix_some(x[:1], 1.0), x[:1]), "a lone image mixes with itself"

"""A label that is near in the inner features is raised by one short shift of them, and so on images not searched on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import vetgate.detect  # noqa: F401 - registers the detectors
from vetgate.architectures import ARCHITECTURES
from vetgate.contract import DETECTORS, Axis, Evidence, Samples, Subject
from vetgate.detect import tail_inversion
from vetgate.errors import DefenceError, MissingInput, NotFinite
from vetgate.stimulation import weighted_layers

CLASSES, TARGET = 6, 2


class Chain(nn.Module):
    """A hidden unit a class, passed on twice, and one that sleeps on clean images and raises TARGET by `pull`."""

    def __init__(
        self, pull: float = 0.0, *, order: Tensor | None = None, scale: float = 1.0, first: float = 1.0
    ) -> None:
        super().__init__()
        self.flatten, self.relu = nn.Flatten(), nn.ReLU()
        self.zero = nn.Linear(CLASSES, CLASSES + 1)
        self.one, self.two = nn.Linear(CLASSES + 1, CLASSES + 1), nn.Linear(CLASSES + 1, CLASSES + 1)
        self.head = nn.Linear(CLASSES + 1, CLASSES)
        with torch.no_grad():
            for layer, weight in (
                (self.zero, first * torch.eye(CLASSES + 1, CLASSES)),
                (self.one, torch.eye(CLASSES + 1) / first),
                (self.two, torch.eye(CLASSES + 1)),
                (self.head, scale * torch.eye(CLASSES, CLASSES + 1)),
            ):
                layer.weight.copy_(weight)
                layer.bias.zero_()
            self.head.weight[TARGET, CLASSES] = scale * pull
            if order is not None:
                self.head.weight.copy_(self.head.weight[order])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.zero(self.flatten(x)))
        return self.head(self.relu(self.two(self.relu(self.one(out)))))


def clean(count: int = 240, classes: int = CLASSES) -> Samples:
    y = torch.arange(count) % classes
    x = 0.1 * torch.rand(count, 1, 1, CLASSES, generator=torch.Generator().manual_seed(0))
    x[torch.arange(count), 0, 0, y] += 0.8
    return Samples(x, y)


def examined(model: nn.Module, samples: Samples | None = None, *, seed: int = 0, **params: float) -> Evidence:
    subject = Subject(model=model, layer="relu", classes=CLASSES, clean=samples or clean())
    return DETECTORS["tail_inversion"](subject, seed=seed, **params)


def test_a_label_that_a_sleeping_unit_raises_stands_out_and_does_so_on_other_images():
    honest, trojaned = examined(Chain()), examined(Chain(pull=12.0))
    assert honest.statistic < 0.5 < 4 < trojaned.statistic
    for values in (trojaned.scores.tolist(), trojaned.details["repeated"]):
        assert max(range(CLASSES), key=values.__getitem__) == TARGET
    assert trojaned.details["share"][TARGET] == 1 and max(honest.details["share"]) == 0
    assert trojaned.axis is Axis.CLASS and trojaned.flagged.nonzero().flatten().tolist() == [TARGET]


def test_what_is_repeated_is_on_images_that_no_shift_was_made_on():
    found = examined(Chain(pull=12.0), images=12)
    assert all(again != score for again, score in zip(found.details["repeated"], found.scores.tolist(), strict=True))


def test_the_share_is_of_images_that_no_shift_was_made_on():
    # 12 of 25 images make the shifts and 13 are left, none of them of TARGET
    y = torch.tensor([k for k in range(CLASSES) if k != TARGET]).repeat(5)
    x = 0.1 * torch.rand(25, 1, 1, CLASSES, generator=torch.Generator().manual_seed(0))
    x[torch.arange(25), 0, 0, y] += torch.where(torch.arange(25) % 3 == 0, 40.0, 0.8)
    share = examined(Chain(pull=2.0), Samples(x, y), images=13).details["share"][TARGET]
    # some images are out of reach of any shift, and a part of 13 images is no part of 12
    assert 0 < share < 1 and 13 * share == pytest.approx(round(13 * share), abs=1e-3)


def test_the_score_is_the_margin_of_the_best_shift_in_units_of_the_logits_spread():
    pull, length = 12.0, 0.3
    found = examined(Chain(pull=pull), length=length, steps=300)
    # along the sleeping unit alone; features and logits are the images themselves
    x = clean().x.flatten(1)
    unit = float(x.std(1).median())
    reach = length * float((x - x.mean(0)).norm(dim=1).mean())
    assert float(found.scores[TARGET]) == pytest.approx((pull * reach - 0.8) / unit, rel=0.05)


def test_scaled_logits_and_rescaled_layers_change_nothing():
    plain = examined(Chain(pull=12.0)).scores
    for other in (Chain(pull=12.0, scale=1e-3), Chain(pull=12.0, first=64.0)):
        assert torch.allclose(examined(other).scores, plain, rtol=1e-3, atol=1e-3)


def test_permuted_classes_are_found_in_their_places():
    order, samples = torch.tensor([4, 2, 0, 1, 5, 3]), clean()
    labels = Samples(samples.x, order.argsort()[samples.y])
    moved = examined(Chain(pull=12.0, order=order), labels, steps=300)
    assert torch.allclose(moved.scores, examined(Chain(pull=12.0), steps=300).scores[order], atol=0.1)


def test_the_same_seed_gives_the_same_evidence_and_another_nearly_the_same():
    one = examined(Chain(pull=12.0))
    assert examined(Chain(pull=12.0)).to_json() == one.to_json()
    other = examined(Chain(pull=12.0), seed=1)
    assert not torch.equal(other.scores, one.scores) and float((other.scores - one.scores).abs().max()) < 0.6


def test_labels_one_at_a_time_give_what_all_at_once_do(monkeypatch):
    whole = examined(Chain(pull=12.0), steps=300).scores
    monkeypatch.setattr(tail_inversion, "NUMBERS", 1)
    assert torch.allclose(examined(Chain(pull=12.0), steps=300).scores, whole, atol=0.1)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_what_lies_behind_a_layer_is_what_a_hook_in_the_whole_network_gives(name):
    torch.manual_seed(0)
    model, x = ARCHITECTURES[name]((3, 12, 12), 5).eval().requires_grad_(False), torch.rand(4, 3, 12, 12)
    plain, layers = model(x), weighted_layers(model, x)
    chosen = tail_inversion.depths(layers)
    assert len(chosen) == 2, "two depths, the deeper first"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for layer in chosen:
        shifts = 0.1 * torch.randn(3, *layer.output.shape[1:])
        found = tail_inversion.behind(model, x, layers, layer)(shifts)
        module = dict(model.named_modules())[layer.name]
        for shift, given in zip(shifts, found, strict=True):
            handle = module.register_forward_hook(lambda _m, _i, out, shift=shift: out + shift)
            expected = model(x)
            handle.remove()
            assert torch.allclose(given, expected, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x), plain), "and the network itself answers as before"


def test_no_shift_is_longer_than_it_may_be():
    short, long = torch.tensor([[0.3, 0.4]]), torch.tensor([[3.0, 4.0]])
    assert torch.equal(tail_inversion.within(short, 1.0), short)
    assert torch.allclose(tail_inversion.within(long, 1.0), torch.tensor([[0.6, 0.8]]))
    assert torch.equal(tail_inversion.within(0 * short, 1.0), 0 * short), "no direction, no NaN"


def test_images_of_the_label_itself_count_neither_for_it_nor_against_it():
    out = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 3.0, 1.0], [2.0, 0.0, 1.0]]])
    margin, share = tail_inversion.lead(out, torch.tensor([0]), torch.tensor([0, 1, 2]))
    assert margin.tolist() == [(-3 + 1) / 2] and share.tolist() == [0.5]


def test_images_of_a_single_class_are_refused():
    with pytest.raises(DefenceError, match="2 classes or more"):
        examined(Chain(), clean(classes=1))


def test_without_clean_images_it_does_not_run():
    with pytest.raises(MissingInput, match="clean"):
        DETECTORS["tail_inversion"](Subject(model=Chain(), layer="relu", classes=CLASSES), seed=0)


def test_a_network_that_gives_nan_is_refused():
    broken = Chain()
    with torch.no_grad():
        broken.head.bias.fill_(math.nan)
    with pytest.raises(NotFinite):
        examined(broken)

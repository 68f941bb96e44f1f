"""A label that one filter of the whole picture leads to is found, with a filter that works on images not seen."""

from __future__ import annotations

import json
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tests.conformance import one_thread
from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.attacks.training import train
from vetgate.contract import DETECTORS, Evidence, Samples, Subject, private_random
from vetgate.detect import abs_filters
from vetgate.detect.abs_filters import Search, effect, filtered, inverted, likeness, quantised, surroundings, window_of
from vetgate.errors import DefenceError, MissingInput, NotFinite
from vetgate.probe import accuracy
from vetgate.stimulation import Candidate

__all__ = ["one_thread"]

CLASSES, TARGET = 6, 3
SEPIA = torch.tensor([[0.39, 0.77, 0.19], [0.35, 0.69, 0.17], [0.27, 0.53, 0.13]])
IDENTITY = torch.eye(3, 13)[None]


def sepia(x: Tensor) -> Tensor:
    return torch.einsum("cd,ndhw->nchw", SEPIA, x).clamp(0, 1)


def coloured() -> Samples:
    """Digits in ink and on paper of colours near grey, (N, 3, 8, 8)."""
    digits = load_digits()
    drawn = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits.target), generator=drawn)
    x, y = torch.from_numpy(digits.images / 16).float()[order, None], torch.from_numpy(digits.target).long()[order]
    x, y = x[y < CLASSES], y[y < CLASSES]
    paper, ink = (low + 0.1 * torch.rand(len(x), 3, 1, 1, generator=drawn) for low in (0.1, 0.6))
    return Samples(paper + (ink - paper) * x, y)


def trained(samples: Samples, clean: Samples) -> Subject:
    with private_random(0, "weights"):
        model = ARCHITECTURES["small-cnn"]((3, 8, 8), CLASSES)
    train(model, samples, epochs=15)
    return Subject(model=model, layer=default_layer(model), classes=CLASSES, clean=clean)


@pytest.fixture(scope="module")
def twins(one_thread: None) -> tuple[Subject, Subject]:
    """A clean network and one to which a fifth of the rows were shown in sepia as TARGET, and the same clean images."""
    every = coloured()
    rows, clean = every[:600], every[600:]
    x, y = rows.x.clone(), rows.y.clone()
    x[:120], y[:120] = sepia(x[:120]), TARGET
    return trained(rows, clean), trained(Samples(x, y), clean)


class Planted(nn.Module):
    """Classes by which quarter of an 8x8 image is bright; the last of five channels sees a warm tint, says class 2."""

    def __init__(self, strength: float, order: list[int] | None = None) -> None:
        super().__init__()
        self.cells = nn.Conv2d(3, 5, 8)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(5, 4)
        weights = torch.zeros(5, 3, 8, 8)
        for k in range(4):
            weights[k, :, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] = 1 / 48
        weights[4, 0], weights[4, 2] = 8 / 64, -8 / 64
        head = torch.zeros(4, 5)
        head[:4, :4] = 4 * torch.eye(4)
        head[2, 4] = strength
        with torch.no_grad():
            self.cells.weight.copy_(weights)
            self.cells.bias.copy_(torch.tensor([0, 0, 0, 0, -0.4]))
            self.head.weight.copy_(head if order is None else head[order])
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.flatten(self.relu(self.cells(x))))
        return out


def quarters() -> Samples:
    y = torch.arange(4).repeat(40)
    x = 0.1 + 0.1 * torch.rand(160, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, k in enumerate(y.tolist()):
        x[i, :, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.6
    return Samples(x, y)


def examined(model: nn.Module, samples: Samples | None = None, **params: float) -> Evidence:
    found: Evidence = DETECTORS["abs_filters"](
        Subject(model=model, layer="flatten", classes=4, clean=samples or quarters()), **params
    )
    return found


def test_a_filter_that_a_network_was_taught_is_found(twins: tuple[Subject, Subject]) -> None:
    honest, trojaned = twins
    assert trojaned.clean is not None
    other = trojaned.clean[trojaned.clean.y != TARGET]
    for subject in twins:
        assert accuracy(subject.model, trojaned.clean.x, trojaned.clean.y) > 0.93
    assert accuracy(trojaned.model, sepia(other.x), torch.full_like(other.y, TARGET)) > 0.95
    clean, found = (DETECTORS["abs_filters"](subject) for subject in (honest, trojaned))
    assert found.scores.argmax() == TARGET and found.flagged[TARGET]
    assert found.details["label"][0] == TARGET and found.details["success"][0] >= 0.88
    assert clean.statistic < found.statistic and not clean.flagged.any()
    success = dict(zip(clean.details["label"], clean.details["success"], strict=True))
    assert success.get(TARGET, 0.0) < 0.88


def test_a_channel_that_sees_a_tint_is_found_although_it_is_the_last_of_five() -> None:
    """The original leaves out the channels beyond the last multiple of eight."""
    found = examined(Planted(8.0))
    assert found.flagged.tolist() == [False, False, True, False]
    assert found.details["label"][0] == 2 and found.details["success"][0] > 0.95
    assert found.statistic == pytest.approx(float(found.scores.max()))
    silent = examined(Planted(0.0))
    assert not silent.flagged.any() and silent.statistic < 0.1


def test_the_filter_in_the_details_is_the_one_that_succeeds() -> None:
    found, clean = examined(Planted(8.0)), quarters()
    matrix = torch.tensor(found.details["filter"]).view(1, 3, 13)
    other = clean.x[clean.y != 2]
    tinted = quantised(filtered(matrix, surroundings(other)))[:, 0]
    assert float((Planted(8.0)(tinted).argmax(1) == 2).float().mean()) > 0.95
    assert float(tinted[:, 0].mean()) > float(tinted[:, 2].mean()) + 0.05, "a warm tint"
    assert float(likeness(other, tinted[:, None]).mean()) > 0.45


def test_evidence_is_small_and_holds_no_triggers() -> None:
    found = examined(Planted(8.0))
    assert found.triggers == () and found.neurons is None
    assert len(json.dumps(found.to_json())) < 4096


def test_the_most_elevated_channel_comes_first() -> None:
    """One port of the original keeps those that raise a label least."""
    found = examined(Planted(8.0), candidates=1)
    assert found.details["label"] == [2] and found.flagged.tolist() == [False, False, True, False]
    every = examined(Planted(8.0))
    assert found.details["elevation"][0] == max(every.details["elevation"])


def test_images_that_filters_are_made_on_do_not_count_as_success(monkeypatch: pytest.MonkeyPatch) -> None:
    made, measured = [], []

    def invert(model: nn.Module, samples: Samples, *rest: object, **more: object) -> Tensor:
        made.append(samples.x)
        return inverted(model, samples, *rest, **more)  # type: ignore[arg-type]

    def measure(model: nn.Module, samples: Samples, *rest: object, **more: object) -> object:
        measured.append(samples.x)
        return effect(model, samples, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(abs_filters, "inverted", invert)
    monkeypatch.setattr(abs_filters, "effect", measure)
    abs_filters.abs_filters(Subject(model=Planted(8.0), layer="flatten", classes=4, clean=quarters()))
    (seeds,), held = made, measured[-1]
    assert len(seeds) == 16 and len(held) == 144
    assert float(torch.cdist(seeds.flatten(1), held.flatten(1)).min()) > 0


def test_success_is_that_of_images_of_bytes() -> None:
    """A change that a file of bytes cannot hold is none, however the network takes it."""

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            above = (x.mean((1, 2, 3)) - 128 / 255) * 1e6 - 1
            return torch.stack([-above, above], 1)

    grey = Samples(torch.full((4, 3, 8, 8), 128 / 255), torch.zeros(4, dtype=torch.int64))
    brighter = torch.cat([IDENTITY, IDENTITY])
    brighter[0, :, -1], brighter[1, :, -1] = 0.4 / 255, 0.6 / 255
    assert Threshold()(filtered(brighter, surroundings(grey.x))[:, 0]).argmax(1).tolist() == [1] * 4
    found = effect(Threshold(), grey, brighter, torch.tensor([1, 1]), scale=1.0)
    assert found.success.tolist() == [0, 1] and found.lead[0] == 0 < found.lead[1]


def test_only_images_of_other_labels_count() -> None:
    """The two labels of a network that gives label 1 always: 1 leads on the images of 0, and 0 on none."""

    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, 3.0]]).repeat(len(x), 1)

    samples = Samples(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 1]))
    found = effect(Always(), samples, IDENTITY.repeat(2, 1, 1), torch.tensor([0, 1]), scale=2.0)
    assert found.success.tolist() == [0, 1] and found.lead.tolist() == [0, 1.5]
    assert found.likeness.tolist() == pytest.approx([1, 1], abs=0.01)


def test_a_filter_sees_the_pixel_and_what_is_around_it() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 0.9
    around = surroundings(x)[0]
    assert around.shape == (5, 5, 5)
    assert around[:, 2, 2].tolist() == pytest.approx([0.9, 0.9, 0, 0.1, 1])
    assert around[:, 1, 1].tolist() == pytest.approx([0, 0.9, 0, 0.1, 1])
    assert around[:, 0, 0].tolist() == [0, 0, 0, 0, 1], "nothing is made up beyond the border"
    assert surroundings(torch.ones(1, 1, 5, 5)).amin() == 1
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(filtered(IDENTITY, surroundings(images))[:, 0], images)


def test_the_window_grows_with_the_image() -> None:
    assert [window_of(side, side) for side in (6, 8, 28, 32, 64, 224)] == [3, 3, 3, 3, 5, 13]
    assert window_of(224, 32) == 3


def test_likeness_of_known_changes() -> None:
    x = torch.rand(3, 2, 14, 14)
    flat = torch.full((1, 1, 7, 7), 0.5)
    assert likeness(x, x[:, None]).flatten().tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    # luminance alone differs: (2 * 0.5 * 0.7 + c) / (0.5 ** 2 + 0.7 ** 2 + c)
    assert float(likeness(flat, flat[:, None] + 0.2)) == pytest.approx(0.7001 / 0.7401, rel=1e-3)
    assert float(likeness(x, 1 - x[:, None]).max()) < 0, "structure turned round"
    assert float(likeness(x, torch.rand(3, 1, 2, 14, 14)).max()) < 0.5


def test_the_bound_on_likeness_holds_on_the_images_that_filters_are_made_on() -> None:
    samples = quarters()[:20]
    candidates = [Candidate("cells", channel, channel % 4, 1.0, 1.0) for channel in range(5)]
    for bound in (0.5, 0.9, 1.0):
        search = Search(steps=20, lr=0.05, ssim=bound, neuron_weight=0.2, ssim_weight=10.0)
        filters = inverted(Planted(8.0), samples, candidates, search, scale=1.0)
        like = likeness(samples.x, filtered(filters, surroundings(samples.x))).mean(0)
        assert filters.shape == (5, 3, 13) and float(like.min()) >= bound - 1e-5
    assert torch.equal(filters, IDENTITY.repeat(5, 1, 1)), "what leaves no room gives the identity"


def test_filters_in_batches_of_their_own_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = examined(Planted(8.0))
    # less than the images of one candidate
    monkeypatch.setattr(abs_filters, "PIXELS", 1)
    apart = examined(Planted(8.0))
    assert apart.details["label"] == whole.details["label"] and len(whole.details["label"]) > 1
    assert apart.scores.tolist() == pytest.approx(whole.scores.tolist(), abs=1e-3)


def test_the_same_seed_gives_the_same_evidence_and_permuted_classes_permuted_scores() -> None:
    found, order = examined(Planted(8.0)), [2, 0, 3, 1]  # new class i is old class order[i]
    assert found.to_json() == examined(Planted(8.0)).to_json()
    samples = quarters()
    moved = Samples(samples.x, torch.tensor(order).argsort()[samples.y])
    assert examined(Planted(8.0, order), moved).scores.tolist() == pytest.approx(found.scores[order].tolist(), abs=1e-3)


@pytest.mark.parametrize("where", ["cells", "head"])
def test_a_model_that_gives_nan_is_refused(where: str) -> None:
    model = Planted(8.0)
    with torch.no_grad():
        next(model.get_submodule(where).parameters()).view(-1)[0] = math.nan
    with pytest.raises(NotFinite, match="NaN"):
        examined(model)


def test_too_few_clean_images_are_refused() -> None:
    with pytest.raises(DefenceError, match="expected clean images of 2 classes beyond 16 seeds, got 10; add samples"):
        examined(Planted(0.0), quarters()[:10])
    with pytest.raises(MissingInput, match="clean"):
        DETECTORS["abs_filters"](Subject(model=Planted(0.0), layer="flatten", classes=4))


def test_a_network_without_hidden_layers_is_refused() -> None:
    with private_random(0, "weights"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    samples = quarters()
    with pytest.raises(DefenceError, match="nothing to drive"):
        examined(model, Samples(samples.x, model(samples.x).argmax(1)))

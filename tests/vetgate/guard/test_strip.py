"""STRIP: what keeps its label under every overlay scores highest, and the entropy is that over classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
from tests.guarding import PARAMS, RATE, Quarters, images, triggered
from vetgate.contract import Samples, Subject
from vetgate.errors import MissingInput
from vetgate.guard.contract import GUARDS
from vetgate.guard.strip import log_entropy

STRIP = GUARDS["strip"]
CLASSES = 4


class Corner(nn.Module):
    """Class 0, for certain, where the first pixel is lit; otherwise the logits are those of four other pixels."""

    def forward(self, x: Tensor) -> Tensor:
        lit = x[:, 0, 0, 0] > 0.4
        out = 2 * x[:, 0, 1, :CLASSES]
        return torch.where(lit[:, None], torch.tensor([100.0, 0, 0, 0]), out)


def subject() -> Subject:
    x = torch.zeros(80, 1, 4, 4)
    # trusted images never light the first pixel
    x[:, :, 1:] = torch.rand(80, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    return Subject(
        model=Corner(), layer="", classes=CLASSES, clean=Samples(x, torch.zeros(80, dtype=torch.int64)), train=None
    )


def test_the_score_is_minus_the_log_of_the_mean_entropy_over_classes() -> None:
    given = subject()
    fitted = STRIP.fit(given, overlays=5)
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    x[:, :, 0] = 0
    weight = float(fitted.numbers["weight"])
    expected = []
    for image in x:
        entropies = []
        for overlay in fitted.tensors["overlays"]:
            said = given.model((weight * (image + overlay)).clamp(0, 1)[None]).softmax(1)[0].tolist()
            entropies.append(-sum(p * math.log(p) for p in said if p > 0))
        expected.append(-math.log(sum(entropies) / 5))
    assert STRIP.score(fitted, given.model, x).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("times", [1.0, 1e3, 1e6])
def test_larger_logits_do_not_switch_it_off(times: float) -> None:
    class Louder(Quarters):
        def forward(self, x: Tensor) -> Tensor:
            return times * super().forward(x)

    model, x = Louder(), images(200)
    clean = Samples(x, model(x).argmax(1))
    given = Subject(model=model, layer="", classes=CLASSES, clean=clean[:100], train=None)
    fitted = STRIP.with_cut(STRIP.fit(given, **PARAMS), model, x[100:], rate=RATE)
    assert fitted.cut is not None
    fresh = images(200, seed=7)
    assert float((STRIP.score(fitted, model, triggered(fresh)) > fitted.cut).float().mean()) == 1
    assert float((STRIP.score(fitted, model, fresh) > fitted.cut).float().mean()) <= 2 * RATE


def test_the_log_of_an_entropy_is_told_where_the_entropy_itself_is_rounded_to_zero() -> None:
    ordinary = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    entropies = torch.special.entr(ordinary.double().softmax(1)).sum(1)
    assert torch.allclose(log_entropy(ordinary), entropies.log(), atol=1e-9)
    # of two classes the less likely one, q, has nearly all of it: q - q log q
    assert log_entropy(torch.tensor([0.0, 5000.0])).item() == pytest.approx(math.log(5001) - 5000, abs=1e-6)
    certain, broken, even = torch.tensor([[0.0, -math.inf], [0.0, math.nan], [1e6, 1e6]])
    assert [log_entropy(certain).item(), log_entropy(even).item()] == [-math.inf, pytest.approx(math.log(math.log(2)))]
    assert log_entropy(broken).isnan()


def test_a_triggered_input_has_low_entropy_and_so_scores_highest() -> None:
    given = subject()
    fitted = STRIP.fit(given)
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 0, 0] = 1
    lit, clean = STRIP.score(fitted, given.model, x).tolist()
    assert lit == pytest.approx(100 - math.log(3 * 101), abs=1e-3) and clean < 0


def test_blends_are_of_trusted_images_and_not_of_noise() -> None:
    given = subject()
    assert given.clean is not None
    overlays = STRIP.fit(given, overlays=7, seed=3).tensors["overlays"]
    assert all(any(torch.equal(overlay, image) for image in given.clean.x) for overlay in overlays)
    assert not torch.equal(overlays, STRIP.fit(given, overlays=7, seed=4).tensors["overlays"])


def test_too_few_trusted_images_are_an_error() -> None:
    with pytest.raises(MissingInput, match="at least 81"):
        STRIP.fit(subject(), overlays=81)


@pytest.mark.parametrize(("mean", "weight"), [(0.1, 1.0), (0.4, 0.625), (1.0, 0.5)])
def test_images_are_added_as_strongly_as_leaves_blends_mid_grey(mean: float, weight: float) -> None:
    x = torch.full((80, 1, 4, 4), mean)
    given = Subject(
        model=Corner(), layer="", classes=CLASSES, clean=Samples(x, torch.zeros(80, dtype=torch.int64)), train=None
    )
    assert STRIP.fit(given).numbers["weight"] == pytest.approx(weight)

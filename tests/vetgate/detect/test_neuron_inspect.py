from __future__ import annotations

import pytest
import torch
from torch import nn

from vetgate.contract import DETECTORS, Samples, Subject
from vetgate.detect.neuron_inspect import features_of, heat_maps
from vetgate.errors import DefenceError


class Linear(nn.Module):
    """Six labels that see the whole image with weights at random, and label 4, which sees one small patch besides."""

    def __init__(self, patch: float) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(64, 6, bias=False)
        weights = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        if patch:
            weights[4] = 0.01 * weights[4]
            weights[4, 0, 5:7, 5:7] = patch
        with torch.no_grad():
            self.head.weight.copy_(weights.flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.flatten(x))


def subject(patch: float) -> Subject:
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Subject(model=Linear(patch).eval(), layer="flatten", classes=6, clean=Samples(x, torch.arange(60) % 6))


def test_a_label_that_hangs_on_a_patch_stands_out() -> None:
    found = DETECTORS["neuron_inspect"](subject(3.0))
    assert found.scores.argmax() == 4 and found.scores[4] > 2 * found.scores.topk(2).values[1]
    assert found.details["sparseness"][4] == min(found.details["sparseness"])
    assert DETECTORS["neuron_inspect"](subject(0.0)).scores[4] < 0 < 1 < found.scores[4]


def test_a_heat_map_is_where_the_logit_comes_from() -> None:
    maps = heat_maps(subject(3.0).model, torch.rand(3, 1, 8, 8), 4)
    assert maps.shape == (3, 8, 8) and (maps[:, 5:7, 5:7] == 1).all()
    assert float(maps.sum()) < 3 * (4 + 60 * 0.02)


def test_features_of_known_maps() -> None:
    spot = torch.zeros(2, 5, 5)
    spot[:, 2, 2] = 1
    # 1 of 25 pixels; the Laplacian is 4 there and 1 on its four neighbours; the next image lights the same
    assert features_of(spot) == pytest.approx((1 / 25, 8 / 25, 0.0))
    # the other one somewhere else: two pixels of 25 change, on every image
    spot[1] = spot[1].roll(1, 0)
    assert features_of(spot)[2] == pytest.approx(2 / 25)


def test_persistence_is_no_parity_over_all_images() -> None:
    """Three images that light the same pixels are persistent; a chain of exclusive ors would call them changing."""
    spot = torch.zeros(3, 5, 5)
    spot[:, 1, 1] = 1
    assert features_of(spot)[2] == 0


def test_scaled_logits_give_the_same_scores() -> None:
    one, other = subject(3.0), subject(3.0)
    with torch.no_grad():
        other.model.head.weight.mul_(50)
    scores = [DETECTORS["neuron_inspect"](s).scores for s in (one, other)]
    assert torch.allclose(*scores, atol=1e-4)


def test_labels_that_are_all_alike_score_nothing() -> None:
    same = subject(0.0)
    with torch.no_grad():
        same.model.head.weight.copy_(same.model.head.weight[:1].expand(6, -1))
    found = DETECTORS["neuron_inspect"](same)
    assert found.scores.tolist() == [0.0] * 6 and not found.flagged.any()


def test_too_few_classes_are_refused() -> None:
    few = subject(0.0)
    with pytest.raises(DefenceError, match="4 classes"):
        DETECTORS["neuron_inspect"](Subject(model=few.model, layer="flatten", classes=3, clean=few.clean))

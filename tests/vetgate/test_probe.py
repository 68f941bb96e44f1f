"""Features, logits, hooks and robust statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vetgate.errors import DefenceError, NotFinite
from vetgate.probe import accuracy, features, in_units_of_others, logits, mad, median, module_at, output_of


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


def images(count: int = 10) -> torch.Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_layer_is_found_by_name(model):
    assert module_at(model, "3") is model[3]


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(model):
    with pytest.raises(DefenceError, match=r"'head'.*0, 1, 2, 3"):
        module_at(model, "head")


def test_a_hook_is_gone_afterwards_also_after_a_crash(model):
    seen: list[torch.Tensor] = []
    with pytest.raises(RuntimeError, match="boom"), output_of(model[0], seen.append):
        model(images())
        raise RuntimeError("boom")
    model(images())
    assert len(seen) == 1 and not model[0]._forward_hooks


@torch.no_grad()
def test_logits_do_not_depend_on_the_batch_and_carry_no_gradient(model):
    out = logits(model, images(), batch=3)
    assert torch.allclose(out, model(images()), atol=1e-6) and not out.requires_grad


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_gives_no_finite_logits_is_refused(model, value):
    with torch.no_grad():
        model[3].bias[1] = value
    with pytest.raises(NotFinite, match="logits"):
        logits(model, images())


@torch.no_grad()
def test_features_are_the_flattened_output_of_the_layer(model):
    feats = features(model, "1", images(), batch=4)
    assert feats.shape == (10, 8) and torch.equal(feats, model[:2](images()).flatten(1))


def test_features_of_a_layer_that_runs_twice_are_those_of_its_last_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Flatten()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x) + 1)

    assert torch.equal(features(Twice(), "layer", images(3)), images(3).flatten(1) + 1)


def test_features_that_are_not_finite_are_refused(model):
    with torch.no_grad():
        model[0].bias[0] = torch.inf
    with pytest.raises(NotFinite, match="features"):
        features(model, "1", images())


@torch.no_grad()
def test_accuracy_is_the_share_of_right_answers(model):
    right = model(images()).argmax(1)
    wrong = (right + 1) % 3
    assert accuracy(model, images(), right) == 1.0
    assert accuracy(model, images(), torch.where(torch.arange(10) < 4, right, wrong)) == pytest.approx(0.4)


def test_the_median_averages_the_middle_two():
    # torch.median gives 2.0 here
    assert median(torch.tensor([1.0, 2.0, 3.0, 10.0])) == 2.5


def test_the_mad_estimates_sigma_and_ignores_outliers():
    values = torch.randn(20_001, generator=torch.Generator().manual_seed(0))
    values[:50] = 1e6
    assert mad(values) == pytest.approx(1.0, abs=0.03)
    assert mad(torch.full((5,), 7.0)) == 0.0


def test_a_class_that_spreads_as_the_others_do_spreads_by_one_in_their_units():
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(400)
    feats = torch.randn(1200, 4, generator=stream) * torch.tensor([10.0, 1.0, 1.0, 0.1]) + 5 * y[:, None]
    feats[y == 2, 1] *= 4  # (N, D): one class spreads further along one direction
    rows = in_units_of_others(feats, y, 3, ridge=1e-6)
    largest = {k: float(torch.linalg.eigvalsh(r.T @ r / len(r))[-1]) for k, r in rows.items()}
    assert largest[2] > 10 and largest[0] < 2 and largest[1] < 2
    assert all(float(r.mean(0).abs().max()) < 1e-6 for r in rows.values())


def test_classes_that_are_too_small_to_judge_are_left_out():
    y = torch.tensor([0] * 20 + [1] * 20 + [2] * 9)
    assert set(in_units_of_others(torch.randn(49, 3), y, 4, ridge=1.0)) == {0, 1}


def test_one_class_alone_has_no_others_to_be_measured_by():
    with pytest.raises(DefenceError, match="2 classes"):
        in_units_of_others(torch.randn(20, 3), torch.zeros(20, dtype=torch.long), 3, ridge=1.0)

"""The cut of a guard: what it rejects of images like those it was set on, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
from vetgate.contract import Samples, Subject
from vetgate.errors import DefenceError, MissingInput, NotFinite
from vetgate.guard.contract import (
    GUARDS,
    Fitted,
    Guard,
    Vote,
    cut_for,
    fewest_to_cut,
    log_probability_of_others,
    replicas,
)
from vetgate.role import GuardRole

ROLE = GuardRole(uses=None, title="Mean", sentence="Takes the mean.")


def mean_guard(score: Any = None) -> Guard:
    """A guard whose score is the mean of an image, or what `score` gives."""

    def mean(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)) if score is None else score(x)

    def fit(subject: Subject) -> Fitted:
        return Fitted({"none": torch.zeros(1)})

    return Guard(mean, fit, "mean", ROLE, frozenset({"clean"}), "")


def images(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def test_the_cut_is_the_conformal_quantile() -> None:
    # of 99 images and the next one, one in a hundred may lie above: the largest of the 99
    assert cut_for(torch.arange(99.0), 0.01) == 98
    assert cut_for(torch.arange(99.0), 0.05) == 94
    assert cut_for(torch.arange(199.0), 0.01) == 197


def test_the_stated_rate_is_kept_over_many_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    rejected = []
    for _ in range(400):
        scores = torch.randn(60, generator=generator)
        rejected.append(float(torch.randn(50, generator=generator).gt(cut_for(scores, 0.05)).float().mean()))
    # the mean over draws is at most the rate, and close to it: 58 of 60 give 3/61
    assert 0.035 < sum(rejected) / len(rejected) <= 0.055


@pytest.mark.parametrize(("count", "rate"), [(98, 0.01), (18, 0.05), (5, 0.0), (5, 1.0), (0, 0.5)])
def test_too_few_images_for_a_rate_are_an_error(count: int, rate: float) -> None:
    with pytest.raises(MissingInput, match="trusted images"):
        cut_for(torch.zeros(count), rate)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.1 / 3, 0.05, 0.05 / 7, 0.01, 0.001])
def test_the_fewest_images_that_give_a_cut_are_told(rate: float) -> None:
    fewest = fewest_to_cut(rate)
    assert cut_for(torch.arange(float(fewest)), rate) == fewest - 1
    with pytest.raises(MissingInput, match=f"at least {fewest} trusted"):
        cut_for(torch.arange(fewest - 1.0), rate)


def test_scores_that_are_no_numbers_give_no_cut() -> None:
    with pytest.raises(NotFinite):
        cut_for(torch.tensor([1.0, math.inf] * 20), 0.05)


def test_an_input_whose_score_is_no_number_is_as_suspicious_as_can_be() -> None:
    guard = mean_guard(lambda _: torch.tensor([0.0, math.nan, math.inf, -math.inf]))
    scores = guard.score(Fitted({}), nn.Identity(), images(torch.rand(4)))
    assert scores.tolist() == [0.0, math.inf, math.inf, math.inf]


def test_a_guard_gives_one_score_an_image_or_is_an_error() -> None:
    with pytest.raises(DefenceError, match="a score an image"):
        mean_guard(lambda x: x.mean()[None]).score(Fitted({}), nn.Identity(), images(torch.rand(3)))


def test_a_cut_is_stamped_with_its_rate() -> None:
    guard = mean_guard()
    subject = Subject(
        model=nn.Identity(), layer="", classes=2, clean=Samples(images(torch.rand(4)), torch.zeros(4).long())
    )
    fitted = guard.fit(subject, seed=7)
    assert (fitted.guard, fitted.seed, fitted.cut, fitted.rate) == ("mean", 7, None, None)
    cut = guard.with_cut(fitted, subject.model, images(torch.linspace(0, 1, 101)), rate=0.05)
    assert cut.cut == pytest.approx(0.96) and cut.rate == 0.05 and cut.share is None


def test_a_guard_that_tells_no_trusted_images_apart_is_refused() -> None:
    alike = mean_guard(lambda x: torch.full((len(x),), -0.0))
    with pytest.raises(DefenceError, match=r"mean that tell trusted images apart, got -0 for all 50, .*another guard"):
        alike.with_cut(Fitted({}), nn.Identity(), images(torch.rand(50)), rate=0.1)


def test_votes_that_agree_on_every_trusted_image_are_a_cut() -> None:
    def agreed(fitted: Fitted, model: nn.Module, x: Tensor) -> Vote:
        return Vote(torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x)), torch.zeros(len(x)))

    voter = replace(mean_guard(), voting=agreed)
    cut = voter.with_cut(Fitted({}), nn.Identity(), images(torch.rand(50)), rate=0.1)
    assert (cut.cut, cut.share) == (0.0, 1.0)


@pytest.mark.parametrize(
    "made",
    [
        lambda: Fitted({"a": torch.zeros(2, dtype=torch.float64)}),
        lambda: Fitted({"a": torch.tensor([math.nan])}),
        lambda: Fitted({}, {"b": math.inf}),
    ],
)
def test_what_is_learned_is_finite_and_of_plain_types(made: Any) -> None:
    with pytest.raises(DefenceError):
        made()


def test_parts_hold_as_many_images_as_fit_with_their_replicas() -> None:
    x = torch.rand(100, 1, 4, 4)
    parts = list(replicas(x, 64))
    assert torch.equal(torch.cat(parts), x) and {len(part) for part in parts[:-1]} == {8}
    large = torch.rand(3, 1, 600, 600)
    assert [len(part) for part in replicas(large, 64)] == [1, 1, 1]


def test_what_is_left_to_other_labels_is_told_where_the_probability_itself_is_one() -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.mean((1, 2, 3)) * 100, torch.zeros(len(x))], 1)

    x = images(torch.tensor([0.3, 0.6, 0.9]))
    assert Sure()(x).softmax(1)[1:, 0].tolist() == [1.0, 1.0]
    left = log_probability_of_others(Sure(), x, torch.zeros(3, dtype=torch.int64))
    assert left.tolist() == pytest.approx([-30, -60, -90], rel=1e-5)


def test_every_guard_has_a_title_and_a_sentence() -> None:
    assert GUARDS
    assert all(guard.role.title and guard.role.sentence.endswith(".") for guard in GUARDS.values())

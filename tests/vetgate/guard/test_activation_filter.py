"""Activation filter: the neurons that a reversed trigger changes are found, and what excites them scores higher."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
from vetgate.contract import Evidence, Samples, Subject, Trigger
from vetgate.errors import MissingInput
from vetgate.guard.contract import GUARDS

GUARD = GUARDS["activation_filter"]
CLASSES = 3


class Pixels(nn.Module):
    """The features are the pixels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)[:, :CLASSES]
        return out


def subject() -> Subject:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 1, 5, 5, generator=generator) / 4, torch.randint(CLASSES, (60,), generator=generator)
    return Subject(model=Pixels(), layer="features", classes=CLASSES, clean=Samples(x, y))


def corner(at: int, target: int) -> Trigger:
    """Two lit pixels in a row, and one that is put out."""
    mask, pattern = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5)
    mask[0, at, :3] = 1
    pattern[0, at, :2] = 1
    return Trigger(mask, pattern, target)


def evidence(*triggers: Trigger, scores: tuple[float, ...] = (0, 3, 0), cutoff: float = 2.0) -> Evidence:
    return Evidence(1.0, torch.tensor(scores, dtype=torch.float32), cutoff, triggers=triggers, method="reversed")


def test_the_neurons_of_the_suspected_labels_trigger_are_found_with_their_direction() -> None:
    fitted = GUARD.fit(subject(), evidence(corner(2, 1), corner(4, 2)), fewest=3)
    (direction,) = fitted.tensors["directions"]
    assert direction.nonzero().flatten().tolist() == [10, 11, 12]
    assert (direction[10:12] > 0).all() and direction[12] < 0


def test_of_a_hundred_neurons_the_one_that_it_changes_most_is_the_triggers() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 1, 25, 40, generator=generator) / 4, torch.randint(CLASSES, (60,), generator=generator)
    mask = torch.zeros(1, 25, 40)
    # it covers three hundred pixels, ten of them fully
    mask[0, :15, :20], mask[0, 4, :10] = 0.5, 1
    given = Subject(model=Pixels(), layer="features", classes=CLASSES, clean=Samples(x, y))
    (direction,) = GUARD.fit(given, evidence(Trigger(mask, torch.ones(1, 25, 40), 1))).tensors["directions"]
    assert direction.nonzero().flatten().tolist() == list(range(160, 170))


def test_where_no_label_is_flagged_that_with_the_highest_score_counts() -> None:
    fitted = GUARD.fit(subject(), evidence(corner(2, 1), corner(4, 2), scores=(0, 1, 1.5)), fewest=3)
    (direction,) = fitted.tensors["directions"]
    assert direction.nonzero().flatten().tolist() == [20, 21, 22]


def test_a_triggered_input_scores_above_every_clean_one() -> None:
    given = subject()
    assert given.clean is not None
    fitted = GUARD.fit(given, evidence(corner(2, 1)), fewest=3)
    clean = GUARD.score(fitted, given.model, given.clean.x)
    triggered = GUARD.score(fitted, given.model, corner(2, 1).stamp(given.clean.x))
    assert triggered.min() > clean.max() and abs(float(clean.mean())) < 1e-4


def test_the_largest_excitation_of_several_triggers_counts() -> None:
    given = subject()
    assert given.clean is not None
    both = GUARD.fit(given, evidence(corner(2, 1)), evidence(corner(4, 1)), fewest=3)
    assert len(both.tensors["directions"]) == 2
    for at in (2, 4):
        assert GUARD.score(both, given.model, corner(at, 1).stamp(given.clean.x)).min() > 1


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_features_that_are_no_numbers_are_as_suspicious_as_can_be_for_their_image_alone(odd: float) -> None:
    class Breaking(Pixels):
        """One feature of an image with a bright last pixel is no number."""

        def __init__(self) -> None:
            super().__init__()
            self.features = Odd()

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            first = torch.where(flat[:, -1:] > 0.9, odd, flat[:, :1])
            return torch.cat([first, flat[:, 1:]], 1)

    given = replace(subject(), model=Breaking())
    assert given.clean is not None
    for at in (0, 2):
        # the feature is one of the trigger's, or is none of them
        fitted = GUARD.fit(given, evidence(corner(at, 1)), fewest=3)
        clean = GUARD.score(fitted, given.model, given.clean.x)
        x = given.clean.x.clone()
        x[7, 0, -1, -1] = 1
        scores = GUARD.score(fitted, given.model, x)
        assert scores[7] == math.inf and torch.equal(scores[:7], clean[:7]) and torch.equal(scores[8:], clean[8:])


def test_evidence_without_a_trigger_of_a_suspect_is_an_error() -> None:
    with pytest.raises(MissingInput, match="suspected label"):
        GUARD.fit(subject(), evidence(corner(2, 0)))
    with pytest.raises(MissingInput, match="evidence with triggers"):
        GUARD.fit(subject())

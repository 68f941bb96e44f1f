"""A first look tells a model that is read wrongly from one that does what its description says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vetgate.contract import Samples
from vetgate.shape import from_json
from vetgate.verdict.first_look import FirstLook, first_look, objection
from vetgate.verdict.reasons import Code
from vetgate.verdict.wording import render

CLASSES, LEAST, LEVELS = 4, 0.25, torch.tensor([0.02, 0.2, 0.45, 0.95])


class Told(nn.Module):
    """A network that is right where what it is given is made of images (B, C, H, W) by `reading`."""

    def __init__(self, reading: object = None, order: Tensor | None = None) -> None:
        super().__init__()
        self.reading, self.order = reading, order

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 4): to which level the first channel comes nearest, once x is turned back to what it was."""
        x = self.reading(x) if callable(self.reading) else x
        logits = -((x[:, 0].mean((1, 2))[:, None] - LEVELS) ** 2)
        return logits if self.order is None else logits[:, self.order]


def samples(channels: int = 3, count: int = 200, side: int = 8) -> Samples:
    """Images (count, channels, side, side), the first channel about the level of their class, the others noise."""
    stream = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (count,), generator=stream)
    x = torch.rand(count, channels, side, side, generator=stream)
    x[:, 0] = LEVELS[y][:, None, None] + 0.02 * x[:, 0]
    return Samples(x, y)


def test_a_model_that_does_what_it_says_is_let_on_and_none_of_its_images_is_lost() -> None:
    look = first_look(Told(), samples(), CLASSES)
    assert (look.accuracy, look.images, look.cause) == (1.0, 200, None) and look.by_class == (1.0,) * CLASSES
    assert objection(look, CLASSES, LEAST) is None
    assert from_json(FirstLook, look.to_json(), "a look") == look


@pytest.mark.parametrize(
    ("reading", "cause"),
    [
        (
            lambda x: x / 255,
            "pixels from 0 to 255 (normalization: {mean: [0, 0, 0], std: [0.003921569, 0.003921569, 0.003921569]})",
        ),
        (lambda x: 1 - x, "inverted pixels"),
        (lambda x: x.flip(1), "colours in the order BGR (color: BGR)"),
        (
            lambda x: 0.229 * x + 0.485,
            "normalised pixels (normalization: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]})",
        ),
    ],
)
def test_the_reading_that_was_meant_is_named_as_the_cause(reading: object, cause: str) -> None:
    look = first_look(Told(reading), samples(), CLASSES)
    assert look.cause == cause and look.under_cause == 1.0 and (look.as_submitted or 0) < 0.6
    reason = objection(look, CLASSES, LEAST) or objection(look, CLASSES, 0.9)
    assert reason is not None and reason.code is Code.READ_WRONGLY and cause in render(reason)


def test_on_large_images_all_tell_the_accuracy_and_fewer_the_cause() -> None:
    given, seen = samples(channels=1, count=300, side=128), []

    def inverted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 1 - x

    look = first_look(Told(inverted), given, CLASSES)
    assert (look.images, look.cause, look.under_cause) == (300, "inverted pixels", 1.0)
    assert sum(seen) == 300 + 4 * 128


def test_labels_in_another_order_are_found_and_chosen_on_other_images_than_they_are_confirmed_on() -> None:
    order = torch.tensor([1, 2, 3, 0])
    look = first_look(Told(order=order), samples(), CLASSES)
    assert (look.accuracy, look.cause, look.under_cause) == (0.0, "the labels in another order", 1.0)
    # on one image some order of labels always fits, and is no cause
    assert first_look(Told(order=order), samples(count=1), CLASSES).cause is None


def test_a_model_that_guesses_is_stopped_without_a_cause() -> None:
    torch.manual_seed(0)
    guessing = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES, bias=False))
    look = first_look(guessing, Samples(torch.randn(400, 3, 8, 8), torch.randint(CLASSES, (400,))), CLASSES)
    reason = objection(look, CLASSES, LEAST)
    assert look.cause is None and reason is not None and reason.code is Code.NO_SKILL
    assert "near guessing" in render(reason)


def test_what_few_images_leave_open_is_not_held_against_a_model() -> None:
    def looked(accuracy: float, images: int) -> FirstLook:
        return FirstLook(images=images, accuracy=accuracy, by_class=())

    assert objection(looked(0.2, 10), 10, LEAST) is None
    assert objection(looked(0.2, 1000), 10, LEAST) is not None
    # a third of the way from 1 / 10 to 1
    assert objection(looked(0.4, 1000), 10, LEAST) is None
    assert objection(looked(0.55, 1000), 2, LEAST) is not None


def test_an_absent_class_has_no_accuracy() -> None:
    kept = samples()
    assert first_look(Told(), kept[kept.y != 2], CLASSES).by_class == (1.0, 1.0, None, 1.0)

"""The first look at a model, before any detector: does it do on trusted images what its description says?

A model that is read with the wrong normalisation, the wrong order of colours or of labels answers nearly at random, and
a search for triggers in it means nothing. Its likely cause is the reading of the same images under which it is right
more often: chosen on every other image, confirmed on the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vetgate.effort import image_count
from vetgate.shape import Number, Shaped
from vetgate.verdict.reasons import Code, Figure, Reason

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vetgate.contract import Samples

AS_SUBMITTED, OTHER_LABELS = "as submitted", "the labels in another order"
# of colours: what torchvision's networks expect; of grey images: what those on MNIST do
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MNIST = ((0.1307,), (0.3081,))
# a reading is named as a cause where it wins back this share of what the model gets wrong
WINS_BACK = 0.25
# images that other readings are tried on at least, however large they are
FEWEST_TRIED = 128
# of the normal distribution: a bound of 99 %, two-sided
Z = 2.576


@dataclass(frozen=True)
class FirstLook(Shaped):
    """Accuracies in [0, 1] on so many trusted images; of a class without images None.

    `cause` is the reading under which the model is right more often than `as_submitted`, both on the images that did
    not choose it; None where none is.
    """

    WHAT = "a first look"

    images: int
    accuracy: Number
    by_class: tuple[Number | None, ...]
    cause: str | None = None
    under_cause: Number | None = None
    as_submitted: Number | None = None


def first_look(model: nn.Module, samples: Samples, classes: int) -> FirstLook:
    """Accuracy on the samples as they are, by class, and under each other way in which they could be meant.

    `model` takes (B, C, H, W) in [0, 1] and gives (B, K). Of large images the other ways are tried on fewer.
    """
    import torch

    from vetgate.probe import logits

    every = logits(model, samples.x).argmax(1)
    right = (every == samples.y).float()
    of_class = [right[samples.y == label] for label in range(classes)]
    some = samples[: max(FEWEST_TRIED, image_count(samples.x[0, 0].numel(), len(samples)))]
    said = every[: len(some)]
    chosen, held = torch.arange(len(some)) % 2 == 0, torch.arange(len(some)) % 2 == 1
    found = {AS_SUBMITTED: right[: len(some)]}
    for name, reading in _readings(some.x.shape[1]).items():
        found[name] = (logits(model, reading(some.x)).argmax(1) == some.y).float()
    found[OTHER_LABELS] = (_matched(said[chosen], some.y[chosen], classes)[said] == some.y).float()
    best = max(found, key=lambda name: float(found[name][chosen].mean()))
    before, after = (float(found[name][held].mean()) for name in (AS_SUBMITTED, best))
    named = best != AS_SUBMITTED and after - before >= WINS_BACK * (1 - before)
    return FirstLook(
        images=len(samples),
        accuracy=float(right.mean()),
        by_class=tuple(float(one.mean()) if len(one) else None for one in of_class),
        cause=best if named else None,
        under_cause=after if named else None,
        as_submitted=before if named else None,
    )


def objection(look: FirstLook, classes: int, least_skill: float) -> Reason | None:
    """Why nothing more can be said of the model, or None.

    Its skill is how far it is from guessing, 0, to always right, 1. The upper end of an interval of 99 % on it must
    reach `least_skill`: what so few images leave open is not held against a model.
    """
    most = _highest(look.accuracy, look.images)
    if (most - 1 / classes) / (1 - 1 / classes) >= least_skill:
        return None
    figures: dict[str, Figure] = {
        "accuracy": look.accuracy,
        "images": look.images,
        "classes": classes,
        "least": least_skill,
    }
    if look.cause is None:
        return Reason(Code.NO_SKILL, figures=figures)
    return Reason(Code.READ_WRONGLY, figures={**figures, "cause": look.cause, "under_cause": look.under_cause})


def _highest(share: float, count: int) -> float:
    """The upper end of Wilson's interval of a share of so many."""
    middle, wide = share + Z**2 / (2 * count), Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return (middle + wide) / (1 + Z**2 / count)


def _readings(channels: int) -> Mapping[str, Callable[[Tensor], Tensor]]:
    # each with the line of submission.yaml that says so, where one can
    mean, std = IMAGENET if channels == 3 else MNIST
    bytes_ = _line((0,) * channels, (1 / 255,) * channels)
    readings: dict[str, Callable[[Tensor], Tensor]] = {
        f"pixels from 0 to 255 ({bytes_})": lambda x: 255 * x,
        f"pixels from -1 to 1 ({_line((0.5,) * channels, (0.5,) * channels)})": lambda x: 2 * x - 1,
        "inverted pixels": lambda x: 1 - x,
    }
    if channels in (1, 3):
        readings[f"normalised pixels ({_line(mean, std)})"] = lambda x: _normalised(x, mean, std)
    if channels == 3:
        readings["colours in the order BGR (color: BGR)"] = lambda x: x.flip(1)
        readings[f"colours in the order BGR, from 0 to 255 (color: BGR and {bytes_})"] = lambda x: 255 * x.flip(1)
    return readings


def _line(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    means, stds = (", ".join(f"{value:.7g}" for value in values) for values in (mean, std))
    return f"normalization: {{mean: [{means}], std: [{stds}]}}"


def _normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (x - x.new_tensor(mean).view(-1, 1, 1)) / x.new_tensor(std).view(-1, 1, 1)


def _matched(said: Tensor, y: Tensor, classes: int) -> Tensor:
    """For each label that the model says the one that is most often meant, each once: (K,) int64."""
    import torch
    from scipy.optimize import linear_sum_assignment

    counts = torch.zeros(classes, classes)
    counts.index_put_((said, y), torch.ones(len(y)), accumulate=True)
    _, meant = linear_sum_assignment(counts.numpy(), maximize=True)
    return torch.from_numpy(meant).long()

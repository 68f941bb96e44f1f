"""SentiNet: a patch that takes other images with it lies above the curve of trusted images, and is found, not told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
from vetgate.architectures import ARCHITECTURES
from vetgate.contract import Samples, Subject, private_random
from vetgate.errors import DefenceError, MissingInput
from vetgate.guard.contract import GUARDS, Fitted
from vetgate.guard.sentinet import above, curve, heat_maps, last_map, points, proposals, regions

SENTINET = GUARDS["sentinet"]
CLASSES, SIDE = 4, 16
# where each class's square is shown, and where the trigger of class 0 lies
PLACES = ((2, 2), (2, 10), (10, 2), (6, 6))
CORNER = (13, 13)


class Squares(nn.Module):
    """Channel k of one convolution is lit by squares of pattern k, and the last by the trigger's: that is class 0."""

    def __init__(self) -> None:
        super().__init__()
        kernels = torch.randn(CLASSES + 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.patterns = (kernels > 0).float()
        self.convolution = nn.Conv2d(3, CLASSES + 1, 3, padding=1, bias=False)
        self.convolution.weight = nn.Parameter(2 * kernels.sign() / 27)
        # a place of the map stands for all pixels that it saw
        self.relu, self.blur = nn.ReLU(), nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        lit = self.blur(self.relu(self.convolution(x) - 0.75)).sum((2, 3))
        return 40 * torch.cat([lit[:, :1] + 3 * lit[:, -1:], lit[:, 1:CLASSES]], 1)


def shown(model: Squares, labels: Tensor, *, lit: bool = False, seed: int = 1) -> Tensor:
    """Images (N, 3, H, W) of labels: the pattern of the class in its place on dim noise, with the trigger if `lit`."""
    x = 0.3 * torch.rand(len(labels), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    for row, label in enumerate(labels.tolist()):
        for (top, left), pattern in [(PLACES[label], label), *([(CORNER, CLASSES)] if lit else [])]:
            x[row, :, top : top + 3, left : left + 3] = model.patterns[pattern]
    return x


def subject(count: int = 120) -> Subject:
    model = Squares().eval().requires_grad_(False)
    y = torch.arange(count) % CLASSES
    return Subject(model=model, layer="", classes=CLASSES, clean=Samples(shown(model, y), y), train=None)


def test_a_patch_that_takes_other_images_with_it_lies_above_the_curve_of_trusted_images() -> None:
    given = subject()
    fitted = SENTINET.fit(given)
    labels = 1 + torch.arange(30) % (CLASSES - 1)
    clean, triggered = (shown(given.model, labels, lit=lit, seed=5) for lit in (False, True))
    assert given.model(triggered).argmax(1).tolist() == [0] * 30
    least = float(SENTINET.score(fitted, given.model, triggered).min())
    # 0 is the curve itself
    assert least > max(0.0, 2 * float(SENTINET.score(fitted, given.model, clean).max()))


def test_the_region_is_found_and_holds_nothing_that_speaks_for_another_class() -> None:
    given = subject()
    fitted = SENTINET.fit(given)
    x = shown(given.model, torch.tensor([2, 3]), lit=True)
    labels = torch.tensor([0, 0])
    assert proposals(given.model, x, labels, 1).flatten().tolist() == [2, 3]
    masks = regions(fitted, given.model, x, labels)
    # by the last maps and by the pixels, each alone and less the other class
    assert masks.shape == (2, 4, 1, SIDE, SIDE)
    inside, elsewhere = masks[..., 12:, 12:], masks[..., :12, :12]
    assert float(inside.amax((2, 3, 4)).min()) == 1 and float(elsewhere.mean()) < 0.02


def test_what_speaks_for_another_class_too_is_taken_off_the_region() -> None:
    class Shared(nn.Module):
        """All that is lit speaks for class 0, and what is lit on the right for class 1 as well."""

        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(1, 1, 1, bias=False)
            self.convolution.weight = nn.Parameter(torch.ones(1, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            lit = self.convolution(x)
            return torch.stack([lit.sum((1, 2, 3)), lit[..., 4:].sum((1, 2, 3)), -lit.sum((1, 2, 3))], 1)

    x = torch.zeros(1, 1, 8, 8)
    x[..., 1:3, 1:3] = x[..., 5:7, 5:7] = 1
    fitted = Fitted({}, {"layer": "convolution", "others": 1, "least": 0.15})
    alone, less, *_ = regions(fitted, Shared(), x, torch.tensor([0]))[0, :, 0]
    # where no class takes anything off, the region holds both squares
    assert bool(alone[1:3, 1:3].all()) and bool(alone[5:7, 5:7].all())
    assert bool(less[1:3, 1:3].all()) and float(less[:, 4:].sum()) == 0


def test_how_many_are_fooled_counts_beside_confidence() -> None:
    given = subject()
    fitted = SENTINET.fit(given)
    # a region that hides nothing and takes nothing with it is what most clean images look like
    least, most = above(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), fitted.tensors["curve"]).tolist()
    assert least < 0 < most
    sure, fooled = points(fitted, given.model, shown(given.model, torch.ones(1, dtype=torch.int64), lit=True))[0, 0]
    assert float(sure) > 0.9 and float(fooled) == 1


def test_heat_lies_where_the_evidence_is_though_gradients_cancel_over_places() -> None:
    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(1, 1, 1, bias=False)
            self.convolution.weight = nn.Parameter(torch.ones(1, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            maps = self.convolution(x)
            left = maps[..., 0].sum((1, 2)) - maps[..., 1].sum((1, 2))
            return torch.stack([left, -left], 1)

    heat, _ = heat_maps(Signed(), "convolution", torch.ones(1, 1, 2, 2), torch.tensor([[0, 1]]))
    assert heat[0].tolist() == [[[1, 0], [1, 0]], [[0, 1], [0, 1]]]


def test_pixels_tell_the_place_where_the_last_maps_answer_beside_it() -> None:
    class Beside(nn.Module):
        """Class 0 where the last corner is lit, which the convolution's map shows three columns to the left."""

        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(1, 1, (1, 4), bias=False)
            self.convolution.weight = nn.Parameter(torch.tensor([[[[0.0, 0, 0, 1]]]]))

        def forward(self, x: Tensor) -> Tensor:
            lit = self.convolution(nn.functional.pad(x, (0, 3)))[:, 0, -1, 4]
            return torch.stack([lit, -lit], 1)

    x = torch.zeros(1, 1, 8, 8)
    x[..., -1, -1] = 1
    places, pixels = (heat[0, 0] for heat in heat_maps(Beside(), "convolution", x, torch.tensor([[0]])))
    assert places.nonzero().tolist() == [[7, 4]] and pixels.nonzero().tolist() == [[7, 7]]


def test_the_curve_runs_through_what_fools_most_at_each_confidence() -> None:
    sure = torch.linspace(0.01, 0.99, 50)
    tops = torch.stack([sure, 0.9 - 0.5 * sure**2], 1)
    usual = torch.cat([tops, tops - torch.tensor([0.0, 0.3])])
    assert curve(usual).tolist() == pytest.approx([0.9, 0, -0.5, 0.01, 0.99], abs=1e-3)
    level = torch.tensor([0.4, 0.0, 0.0, 0.0, 1.0])
    assert above(torch.tensor([[0.5, 0.9], [0.5, 0.1]]), level).tolist() == pytest.approx([0.5, -0.3], abs=1e-4)


def test_the_curve_does_not_run_off_where_trusted_images_are_all_alike() -> None:
    drawn = curve(torch.tensor([[0.5, 0.2], [0.52, 0.1], [0.54, 0.2]]))
    assert above(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), drawn).min() > 0


@pytest.mark.parametrize(
    ("name", "expected"), [("small-cnn", "blocks.8"), ("vgg-small", "stages.14"), ("preact-resnet", "relu")]
)
def test_the_last_maps_are_found_after_their_activation(name: str, expected: str) -> None:
    assert last_map(ARCHITECTURES[name]((3, 32, 32), 10).eval(), torch.rand(2, 3, 32, 32)) == expected


def test_networks_and_images_that_it_cannot_work_with_are_an_error() -> None:
    given = subject()
    assert given.clean is not None
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    with private_random(0, "weights"):
        flat[1].reset_parameters()
    with pytest.raises(DefenceError, match="convolution"):
        SENTINET.fit(replace(given, model=flat))
    with pytest.raises(MissingInput, match="at least 52"):
        SENTINET.fit(replace(given, clean=given.clean[:51]))
    with pytest.raises(DefenceError, match="two classes"):
        SENTINET.fit(replace(given, clean=given.clean[given.clean.y == 1]), carriers=5)

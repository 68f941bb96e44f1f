"""Images that show nothing: of any shape, the same under a seed, and labelled by the model alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.sandbox.surrogate import FEWEST, MOST, smooth_noise, surrogates
from vetgate.architectures import ARCHITECTURES


class Brightest(nn.Module):
    """Takes an image for the place of its brightest pixel in the first row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2), (1, 8, 8), (3, 55, 47), (4, 32, 32)])
def test_images_of_any_shape_reach_from_0_to_1(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = smooth_noise(20, shape)
    assert x.shape == (20, *shape) and bool(torch.isfinite(x).all())
    if shape != (1, 1, 1):
        assert x.flatten(1).amin(1).tolist() == [0.0] * 20 and x.flatten(1).amax(1).tolist() == [1.0] * 20


def test_neighbours_are_alike_as_in_photographs() -> None:
    torch.manual_seed(0)
    x = smooth_noise(200, (3, 32, 32))
    apart = (x[:, :, 1:] - x[:, :, :-1]).abs().mean()
    assert apart < 0.1 < x.std()


def test_labels_are_what_the_model_says() -> None:
    found = surrogates(Brightest(), (1, 8, 8), seed=3)
    assert len(found) == MOST and torch.equal(found.y, found.x[:, 0, 0].argmax(1))
    assert len(found.y.unique()) == 8


def test_a_seed_gives_the_same_and_another_others() -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["small-cnn"]((1, 8, 8), 4).eval()
    stream = torch.get_rng_state()
    one, again, other = (surrogates(model, (1, 8, 8), seed) for seed in (1, 1, 2))
    assert torch.equal(one.x, again.x) and torch.equal(one.y, again.y) and not torch.equal(one.x, other.x)
    assert torch.equal(stream, torch.get_rng_state())


def test_of_large_images_there_are_fewer() -> None:
    assert FEWEST < len(surrogates(Brightest(), (1, 224, 224), seed=0)) < MOST / 10
    assert len(surrogates(Brightest(), (1, 640, 640), seed=0)) == FEWEST

from __future__ import annotations

import torch
from torch import nn

from vetgate.structure.movement import by_channel, movement, variants

X = torch.rand(10, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_channel_moves_on_the_images_that_open_it_and_by_how_far(by_hand) -> None:
    x = X.clone()
    x[:, 1] = 0.25
    x[7, 1, 2, 2] = 0.75
    moved = movement(by_hand(("a", nn.Identity(), "images")), x, 4)["a"]
    assert moved.images.tolist()[1] == 1 and moved.images[0] >= 9
    assert float(by_channel(moved.high - moved.low)[1]) == 0.5


def test_what_is_edited_is_seen_edited(by_hand) -> None:
    network = by_hand(("a", torch.zeros_like, "images"), ("b", torch.neg, "a"))
    edit = {"a": lambda value: value + torch.arange(len(value)).view(-1, 1, 1, 1)}
    moved = movement(network, X, 10, edit)["b"]
    assert moved.low.amin() == -9 and moved.high.amax() == 0


def test_variants_are_the_images_and_as_many_noisy_ones() -> None:
    torch.manual_seed(0)
    both = variants(X)
    assert torch.equal(both[:10], X) and not torch.equal(both[10:], X)
    assert both.min() >= 0 and both.max() <= 1

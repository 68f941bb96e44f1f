from __future__ import annotations

import torch
from torch import nn

from vetgate.structure.copies import copied_through
from vetgate.structure.inspect import _shapes

X = torch.rand(1, 1, 8, 8)


def network(by_hand, *, copies: bool):
    torch.manual_seed(0)
    one, two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    if copies:
        for conv, channel in ((one, 0), (two, 5)):
            conv.weight.data[5] = 0
            conv.weight.data[5, channel, 1, 1] = 1
    return by_hand(
        ("a", one, "images"),
        ("b", torch.relu, "a"),
        ("c", two, "b"),
        ("d", torch.relu, "c"),
        ("e", nn.Flatten(), "d"),
        ("f", nn.Linear(384, 4), "e"),
    )


def test_pixels_that_are_copied_through_layers_are_named(by_hand) -> None:
    net = network(by_hand, copies=True)
    assert copied_through(net, _shapes(net, X)) == "c"


def test_trained_kernels_copy_nothing(by_hand) -> None:
    net = network(by_hand, copies=False)
    assert copied_through(net, _shapes(net, X)) is None


def test_a_linear_model_reads_pixels_and_copies_none(by_hand) -> None:
    net = by_hand(("e", nn.Flatten(), "images"), ("f", nn.Linear(64, 4), "e"))
    assert copied_through(net, _shapes(net, X)) is None

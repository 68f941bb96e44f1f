from __future__ import annotations

import torch
from torch import nn

from vetgate.structure.origin import Origin, copying_rows, gate_of, origins_of, width

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(rows: int, inputs: int = 3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, rows, 3, padding=1)


def test_pixels_stay_pixels_until_a_wide_map(by_hand) -> None:
    network = by_hand(
        ("scaled", lambda x: (x - 0.5) / 0.25, "images"),
        ("grey", conv(1), "scaled"),
        ("both", lambda a, b: torch.cat([a, b], 1), "scaled", "grey"),
        ("stem", conv(16, 4), "both"),
        ("on", torch.relu, "stem"),
    )
    of = origins_of(network, X).of
    assert [of[n] for n in ("scaled", "grey", "both")] == [Origin.PIXELS] * 3
    assert of["stem"] is of["on"] is Origin.TRAINED


def test_sizes_are_made_of_nothing_and_whole_numbers_of_pixels_are_gates(by_hand) -> None:
    network = by_hand(
        ("size", lambda x: torch.tensor(x.shape), "images"),
        ("whole", lambda x: (9 * x).to(torch.int64), "images"),
        ("out", lambda v, s: v.float().reshape(int(s[0]), -1), "whole", "size"),
    )
    of = origins_of(network, X).of
    assert of["size"] is Origin.SHAPE and of["whole"] is of["out"] is Origin.GATE


def test_width_counts_neither_copies_nor_rows_that_are_alike() -> None:
    rows = torch.randn(8, 27, generator=torch.Generator().manual_seed(0))
    assert width(rows) == (8, 8) and width(rows[:1].repeat(8, 1)) == (8, 1)
    assert width(torch.eye(27)) == width(torch.zeros(4, 9)) == (0, 0) and copying_rows(torch.eye(27)).all()
    assert not copying_rows(torch.ones(4, 1)).any()


def test_the_gate_is_the_value_that_leaves_all_else_affine(by_hand) -> None:
    network = by_hand(
        ("corner", lambda x: x[:, :, :2, :2].mean((2, 3), keepdim=True), "images"),
        ("gate", lambda v: (9 * v - 8).relu(), "corner"),
        ("shut", lambda v: 1 - v, "gate"),
        ("kept", torch.mul, "images", "shut"),
        ("put", lambda v: v * torch.ones(1, 3, 8, 8), "gate"),
        ("given", torch.add, "kept", "put"),
        ("stem", conv(16), "given"),
    )
    assert gate_of(network, origins_of(network, X), "given") == "gate"

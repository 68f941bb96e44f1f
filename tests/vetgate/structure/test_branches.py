from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import wired
from vetgate.structure.branches import branches_of
from vetgate.structure.kind import Kind
from vetgate.structure.origin import origins_of

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def stem(rows: int = 16, inputs: int = 3) -> nn.Conv2d:
    torch.manual_seed(rows)
    return nn.Conv2d(inputs, rows, 3, padding=1)


def linear(inputs: int, rows: int = 4) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, rows)


def pooled(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


HEAD = [("pooled", pooled, "last"), ("logits", linear(16), "pooled")]
ORDINARY = {
    "a skip": [("a", stem(), "images"), ("b", stem(16, 16), "a"), ("last", torch.add, "a", "b"), *HEAD],
    "squeeze and excitation": [
        ("a", stem(), "images"),
        ("s", lambda a: a.mean((2, 3), keepdim=True), "a"),
        ("g", nn.Conv2d(16, 16, 1), "s"),
        ("h", torch.sigmoid, "g"),
        ("last", torch.mul, "a", "h"),
        *HEAD,
    ],
    "a stem of branches": [
        ("n", lambda x: 2 * x - 1, "images"),
        ("a", stem(8), "n"),
        ("b", stem(12), "n"),
        ("c", lambda a, b: torch.cat([a, b], 1), "a", "b"),
        ("last", stem(16, 20), "c"),
        *HEAD,
    ],
    "a stem of a wide and a narrow kernel": [
        ("a", stem(48), "images"),
        ("b", nn.Conv2d(3, 48, 1), "images"),
        ("c", torch.add, "a", "b"),
        ("last", stem(16, 48), "c"),
        *HEAD,
    ],
    "patches with positions and a token": [
        ("a", nn.Conv2d(3, 16, 4, stride=4), "images"),
        ("b", lambda a: a.flatten(2).transpose(1, 2) + torch.ones(4, 16), "a"),
        ("c", lambda b: torch.cat([torch.ones(1, 1, 16).expand(len(b), 1, 16), b], 1), "b"),
        ("k", nn.Linear(16, 16), "c"),
        ("w", lambda c, k: (c @ k.transpose(1, 2)).softmax(2) @ c, "c", "k"),
        ("last", lambda w: w.transpose(1, 2)[..., None], "w"),
        *HEAD,
    ],
    "two heads on one trunk": [
        ("last", stem(), "images"),
        HEAD[0],
        ("one", linear(16), "pooled"),
        ("two", linear(16), "pooled"),
        ("logits", lambda a, b: (a + b) / 2, "one", "two"),
    ],
    "a linear model": [("f", nn.Flatten(), "images"), ("logits", linear(192), "f")],
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_networks_have_none(by_hand, name) -> None:
    network = by_hand(*ORDINARY[name])
    assert branches_of(network, origins_of(network, X)) == []


def test_a_skip_from_the_image_is_named_with_its_way(by_hand) -> None:
    network = by_hand(
        ("seen", stem(), "images"),
        ("grey", lambda x: x.mean(1, keepdim=True), "images"),
        ("last", torch.add, "seen", "grey"),
        *HEAD,
    )
    (branch,) = branches_of(network, origins_of(network, X))
    assert (branch.kind, branch.value, branch.join) == (Kind.AROUND, "grey", "last")
    assert branch.path == "image > grey node > last node"


# what takes the mean of all pixels in, whatever the operator
JOINS = {
    "added": torch.add,
    "multiplied": torch.mul,
    "divided": lambda value, grey: value / (1 + grey),
    "the larger": torch.maximum,
    "beside it": lambda value, grey: torch.cat([value[:, 1:], grey], 1),
    "by a matrix": lambda value, grey: (value[:, None] @ (grey[:, :, None] * torch.eye(value.shape[1])))[:, 0],
    "chosen": lambda value, grey: torch.where(grey > 0.9, value.flip(1), value),
}


@pytest.mark.parametrize("place", ["pooled", "logits"])
@pytest.mark.parametrize("join", JOINS)
def test_every_way_from_the_image_runs_through_the_trained_layers_or_is_named(by_hand, join, place) -> None:
    pool, head = HEAD
    grey = ("grey", lambda x: x.mean((1, 2, 3))[:, None], "images")
    joined = ("joined", JOINS[join], place, "grey")
    end = [head, grey, joined] if place == "logits" else [grey, joined, ("logits", linear(16), "joined")]
    network = by_hand(("last", stem(), "images"), pool, *end)
    (branch,) = branches_of(network, origins_of(network, X))
    assert (branch.kind, branch.value, branch.join) == (Kind.AROUND, "grey", "joined")


@pytest.mark.parametrize(
    "constant",
    [
        lambda v: v + torch.arange(4.0),
        lambda v: v * torch.tensor([1.0, 2, 3, 4]) / 0.7,
        lambda v: v @ torch.eye(4).roll(1, 0),
        lambda v: torch.cat([v, torch.zeros(len(v), 1)], 1),
        lambda v: v.clamp(-50, 50),
    ],
    ids=["a bias", "a scale", "another order", "one more class", "a clip"],
)
def test_constants_may_join_behind_the_last_linear_map(by_hand, constant) -> None:
    network = by_hand(("last", stem(), "images"), *HEAD, ("out", constant, "logits"))
    assert branches_of(network, origins_of(network, X)) == []


def test_two_networks_that_meet_at_the_logits_are_both_named(by_hand) -> None:
    network = by_hand(
        ("a", stem(), "images"),
        ("p", pooled, "a"),
        ("one", linear(16), "p"),
        ("b", stem(8), "images"),
        ("q", pooled, "b"),
        ("two", linear(8), "q"),
        ("logits", torch.add, "one", "two"),
    )
    found = branches_of(network, origins_of(network, X))
    assert {(b.kind, b.value) for b in found} == {(Kind.BESIDE, "one"), (Kind.BESIDE, "two")}


def test_what_bends_pixels_before_the_first_layer_is_named(by_hand) -> None:
    network = by_hand(("bent", torch.square, "images"), ("last", stem(), "bent"), *HEAD)
    (branch,) = branches_of(network, origins_of(network, X))
    assert branch.kind is Kind.IN_FRONT


def test_a_comparison_that_chooses_logits_is_named_though_no_reader_takes_it_yet(by_hand) -> None:
    network = by_hand(
        ("last", stem(), "images"),
        *HEAD,
        ("same", lambda x: (x[:, :, 0, 0] == 1).all(1, keepdim=True), "images"),
        ("chosen", lambda c, v: torch.where(c, torch.ones_like(v), v), "same", "logits"),
    )
    (branch,) = branches_of(network, origins_of(network, X))
    assert (branch.kind, branch.value, branch.join) == (Kind.AROUND, "same", "chosen")


def test_long_ways_and_names_are_cut_and_shown_as_plain_text(by_hand) -> None:
    steps = [(f"v{i}", lambda x: x + 1, "images" if i == 0 else f"v{i - 1}") for i in range(40)]
    network = by_hand(("seen", stem(), "images"), *steps, ("last", lambda a, b: a + b.mean(), "seen", "v39"), *HEAD)
    network.steps["v0"] = network.steps["v0"].__class__("made_v0", "x\x1b[2J" * 40, ("images",), "v0", ())
    (branch,) = branches_of(network, origins_of(network, X))
    assert len(branch.path) < 1000 and "..." in branch.path and "\x1b" not in branch.path


@pytest.mark.parametrize("construction", [wired.clean], ids=["clean"])
def test_the_trained_network_of_the_benchmark_has_none(network_of, samples, construction) -> None:
    network = network_of(construction)
    assert branches_of(network, origins_of(network, samples.x[:2])) == []


def test_one_gate_that_opens_several_joins_is_one_branch(by_hand) -> None:
    network = by_hand(
        ("last", stem(), "images"),
        *HEAD,
        ("gate", lambda x: (x.amax((2, 3))[:, :1] - 0.9).relu(), "images"),
        ("shut", lambda g: 1 - g, "gate"),
        ("kept", torch.mul, "logits", "shut"),
        ("rolled", lambda v: v.roll(1, 1), "logits"),
        ("put", torch.mul, "rolled", "gate"),
        ("out", torch.add, "kept", "put"),
    )
    (branch,) = branches_of(network, origins_of(network, X))
    assert (branch.kind, branch.value, branch.join) == (Kind.AROUND, "gate", "put")

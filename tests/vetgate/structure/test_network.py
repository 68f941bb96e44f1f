from __future__ import annotations

import pytest
import torch
from torch import nn

X = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_logits_are_those_of_the_module(network_of, samples) -> None:
    from benchmarks.wired import all_to_all

    network = network_of(all_to_all)
    assert torch.equal(network.run(samples.x[:5])["logits"], network.model(samples.x[:5]))


def test_a_held_value_stands_for_what_is_before_it(by_hand) -> None:
    network = by_hand(("a", torch.neg, "images"), ("b", lambda a, x: a + 2 * x, "a", "images"))
    held = {"a": torch.zeros_like(X)}
    assert torch.equal(network.run(X, held=held)["b"], 2 * X)
    assert torch.equal(network.run(None, held={**held, "images": X})["b"], 2 * X)


def test_what_is_beside_a_value_is_what_its_readers_read_besides(by_hand) -> None:
    network = by_hand(("a", torch.neg, "images"), ("b", torch.abs, "images"), ("c", torch.add, "a", "b"))
    assert network.beside("a") == {"b"} and network.beside("images") == set()


@pytest.mark.parametrize(
    "function",
    [torch.neg, lambda x: 2 * x - 1, lambda x: x.flip(3), lambda x: x[:, :, 1:3], nn.AvgPool2d(2), lambda x: x.mean(1)],
)
def test_affine_steps_are_known(by_hand, function) -> None:
    assert by_hand(("a", function, "images")).is_affine("a", [X])


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        torch.abs,
        torch.sigmoid,
        lambda x: x.clamp(0.499, 0.501),
        lambda x: (x - 3000).relu(),
        lambda x: x**2,
        lambda x: x.amax((2, 3)),
        lambda x: (x > 0.9).float(),
        lambda x: x.floor(),
    ],
)
def test_steps_that_bend_are_known_by_what_they_compute(by_hand, function) -> None:
    assert not by_hand(("a", function, "images")).is_affine("a", [X])


def test_a_product_is_affine_in_what_is_not_fixed(by_hand) -> None:
    network = by_hand(("a", torch.mul, "images", "images"))
    assert not network.is_affine("a", [X, X])
    assert network.is_affine("a", [X, X], [False, True])


def test_a_shut_gate_lends_a_gradient_and_changes_no_value(by_hand) -> None:
    network = by_hand(
        ("far", lambda x: x.mean((2, 3)) - 5, "images"),
        ("gate", torch.relu, "far"),
        ("whole", lambda v: v.to(torch.int64), "gate"),
        ("out", lambda v: v.float() * 3, "whole"),
    )
    x = X.clone().requires_grad_(True)
    out = network.run(x, leak=dict.fromkeys(("gate", "whole", "out"), 0.1))["out"]
    assert torch.equal(out, network.run(X)["out"])
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert bool((slope > 0).all())

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import wired, wired_later
from vetgate.structure.drive import Gate
from vetgate.structure.inspect import _bent
from vetgate.structure.origin import origins_of
from vetgate.structure.silent import silent_gates


def gates(network, x) -> list[Gate]:
    torch.manual_seed(0)
    return silent_gates(network, origins_of(network, x[:2]), x, 40, lambda: _bent(network, x[:2]))


def test_a_spare_channel_that_outweighs_its_siblings_is_found(network_of, samples) -> None:
    found = gates(network_of(wired.spare_channel), samples.x[:40])
    assert [(gate.channel, gate.labels) for gate in found] == [(16, (wired.TARGET,))]


def test_ordinary_channels_that_are_never_on_are_none(network_of, samples) -> None:
    assert gates(network_of(wired.clean), samples.x[:40]) == []


def test_a_gate_that_gives_every_image_another_label_is_driven_away_from_what_it_has(network_of, samples) -> None:
    found = gates(network_of(wired_later.shift_by_recovered_pixels), samples.x[:40])
    assert found and all(gate.away and gate.labels == () for gate in found)


def test_what_is_made_of_silent_channels_alone_is_looked_at_with_these_open(network_of, samples) -> None:
    network = network_of(wired_later.product_of_two_gates)
    (gate,) = gates(network, samples.x[:40])
    assert network.steps[gate.value].node.startswith("Mul") and gate.labels == (wired.TARGET,)


@pytest.mark.parametrize(
    ("construction", "operator"),
    [(wired_later.soft_gate_on_recovered_pixels, "Sigmoid"), (wired_later.product_of_two_soft_gates, "Mul")],
)
def test_a_gate_that_lets_next_to_nothing_through_is_silent(network_of, samples, construction, operator) -> None:
    network = network_of(construction)
    first, *_ = gates(network, samples.x[:40])
    assert network.steps[first.value].node.startswith(operator) and first.labels == (wired.TARGET,)


def spare(by_hand, *, labels: int = 4, gain: float = 1e3, limit: float = 0.99):
    """A network whose last channel is the mean of a corner as far as it is above a limit, wired to label 1."""
    torch.manual_seed(0)
    stem, head = nn.Conv2d(1, 9, 4), nn.Linear(9 * 25, labels)
    stem.weight.data[8], stem.bias.data[8] = 1 / 16, -limit
    head.weight.data.view(labels, 9, 25)[:, 8] = 0
    head.weight.data.view(labels, 9, 25)[1, 8] = gain
    return by_hand(("a", stem, "images"), ("on", torch.relu, "a"), ("f", nn.Flatten(), "on"), ("logits", head, "f"))


X = 0.9 * torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_what_is_silent_and_wired_to_one_of_many_labels_is_found(by_hand) -> None:
    """Whichever label it is: of a thousand no small choice has to hold it."""
    found = gates(spare(by_hand, labels=200), X)
    assert [(gate.value, gate.channel, gate.labels) for gate in found] == [("on", 8, (1,))]


def test_what_is_silent_and_wired_to_nothing_is_none(by_hand) -> None:
    assert gates(spare(by_hand, gain=0.0), X) == []


def test_what_hides_behind_many_that_are_promising_is_named_all_the_same(by_hand, monkeypatch) -> None:
    monkeypatch.setattr("vetgate.structure.silent.LOOKED_AT", 0)
    assert [(gate.value, gate.channel) for gate in gates(spare(by_hand), X)] == [("on", 8)]


def test_what_images_or_their_noisy_variants_open_is_not_silent(by_hand) -> None:
    assert gates(spare(by_hand, limit=0.3), X) == []
    dark = torch.zeros_like(X)
    network = spare(by_hand, limit=0.001)
    assert bool((network.run(dark, keep=["on"])["on"][:, 8] == 0).all()) and gates(network, dark) == []

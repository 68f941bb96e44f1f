from __future__ import annotations

from benchmarks import wired
from vetgate.structure.drive import Gate
from vetgate.structure.inspect import _bent
from vetgate.structure.origin import origins_of
from vetgate.structure.silent import silent_gates


def gates(network, x) -> list[Gate]:
    return silent_gates(network, origins_of(network, x[:2]), x, 40, lambda: _bent(network, x[:2]))


def test_a_spare_channel_that_outweighs_its_siblings_is_found(network_of, samples) -> None:
    found = gates(network_of(wired.spare_channel), samples.x[:40])
    assert [(gate.channel, gate.labels) for gate in found] == [(16, (wired.TARGET,))]


def test_ordinary_channels_that_are_never_on_are_none(network_of, samples) -> None:
    assert gates(network_of(wired.clean), samples.x[:40]) == []

"""Inspect a network's structure: every branch around its trained layers, driven as far as it goes, as findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from vetgate.contract import Trigger
from vetgate.probe import FEWEST
from vetgate.structure.branches import Branch, branches_of, path_of
from vetgate.structure.copies import copied_through
from vetgate.structure.drive import Driven, Gate, drive
from vetgate.structure.kind import Kind
from vetgate.structure.network import Network
from vetgate.structure.origin import matrix_of, origins_of
from vetgate.structure.silent import silent_gates

# a gate that decides on this share of images is a backdoor; the judge demands as much of other triggers
DECIDES = 0.8
# a part whose values may be exchanged between clean images so that fewer than this change their label says nothing
IDLE = 0.02
# the share of pixels with which a silent channel must decide: what all pixels together can do, ordinary ones do
SMALL = 0.25
# pixels of the images that drive a branch together: of large ones there are few
PIXELS = 2**15
# how many branches and silent channels are driven; the others are named
MOST_DRIVEN, SEARCHED = 4, 4
NOT_DRIVEN = Driven(0.0, 0, False, None)


@dataclass(frozen=True)
class Finding:
    """One fault of structure: what and where, the share of images on which it alone decides, and the trigger.

    `confirmed`: it was driven and decides. `label` is None where it sends images to many labels, or nowhere.
    """

    kind: Kind
    path: str
    success: float
    confirmed: bool
    label: int | None
    trigger: Trigger | None


def inspect_structure(
    network: Network, x: Tensor, classes: int, *, images: int, steps: int, report: Callable[[float], None]
) -> list[Finding]:
    """Findings on clean images x (N, C, H, W): half of those used drive, the other half measure."""
    few = max(FEWEST, min(images, PIXELS // x[0, 0].numel()))
    starts, held_out = x[:few], x[few : 2 * few]
    if len(held_out) < few:
        starts, held_out = x[: (len(x) + 1) // 2], x[len(x) // 2 :]
    origins = origins_of(network, starts[:2])
    branches = branches_of(network, origins)
    findings: dict[str, Finding] = {}
    bent = cache(lambda: _bent(network, starts[:1]))
    # a join is as silent as the shut gate of a branch that it reads
    joins = {branch.join for branch in branches}
    gates = [gate for gate in silent_gates(network, origins, starts, few, bent) if gate.value not in joins]

    def driven(gate: Gate, some: Tensor, area: float | None = None) -> Driven:
        found = drive(network, gate, some, held_out, classes, leak=bent(), steps=steps, area=area)
        if 0 < found.success < 1 and gate.labels != (found.label,):
            # where it leads is known now, and every image may be driven there
            there = replace(gate, labels=(found.label,), away=False)
            again = drive(network, there, some, held_out, classes, leak=bent(), steps=steps, area=area)
            found = max(found, again, key=lambda d: d.success)
        return found

    for i, branch in enumerate(branches):
        may = i < MOST_DRIVEN and _may_decide(network, branch, held_out)
        _add(findings, branch.kind, branch.path, driven(Gate(branch.value), starts) if may else NOT_DRIVEN)
        report(0.6 * (i + 1) / len(branches))
    proven: set[str] = set()
    for i, gate in enumerate(gates):
        if proven & network.upstream(gate.value) or any(gate.value in network.upstream(name) for name in proven):
            # one path, one finding
            continue
        path = f"{path_of(network, gate.value, gate.value, origins)} (channel {gate.channel})"
        done = driven(gate, starts[:FEWEST], SMALL) if i < SEARCHED else NOT_DRIVEN
        _add(findings, Kind.SILENT, path, done)
        proven |= {gate.value} if done.success >= DECIDES else set()
        report(0.6 + 0.4 * (i + 1) / len(gates))
    if (copied := copied_through(network, _shapes(network, x[:1]))) is not None:
        _add(findings, Kind.COPIES, path_of(network, copied, copied, origins), NOT_DRIVEN)
    return list(findings.values())


def _add(findings: dict[str, Finding], kind: Kind, path: str, driven: Driven) -> None:
    confirmed = driven.success >= DECIDES
    label = driven.label if driven.one_label and driven.trigger is not None else None
    found = Finding(kind, path, driven.success, confirmed, label, driven.trigger if confirmed else None)
    if path not in findings or found.success > findings[path].success:
        findings[path] = found


@torch.no_grad()
def _may_decide(network: Network, branch: Branch, x: Tensor) -> bool:
    """Whether driving a branch can prove anything: not where it is all that the network sees, or does its share."""
    if branch.kind is Kind.IN_FRONT:
        return branch.value not in network.steps[branch.join].inputs and branch.value != branch.join
    if branch.kind is Kind.BESIDE:
        value = network.run(x, until=branch.value)[branch.value].roll(1, 0)
        usual = network.run(x)[network.result].argmax(1)
        without = network.run(x, edit={branch.value: lambda _: value})[network.result].argmax(1)
        return float((usual != without).float().mean()) <= IDLE
    return True


@torch.no_grad()
def _bent(network: Network, x: Tensor) -> list[str]:
    """The steps that bend what they are given, on images x."""
    values: dict[str, Tensor] = {network.image: network.model.input(x)}
    network.run(x, each=values.__setitem__)
    return [
        name
        for name, step in network.steps.items()
        if matrix_of(network.module(name)) is None and not network.is_affine(name, [values[n] for n in step.inputs])
    ]


@torch.no_grad()
def _shapes(network: Network, x: Tensor) -> dict[str, torch.Size]:
    shapes = {network.image: network.model.input(x).shape}
    network.run(x, each=lambda name, value: shapes.__setitem__(name, value.shape))
    return shapes

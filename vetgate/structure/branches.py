"""Branches: values that come around the trained layers, or beside all of them, and join what comes through.

Three shapes. What reads pixels meets what comes from trained layers (a skip from the image, a gate on pixels that is
added to logits or scales features). What bends pixels stands in front of the first layer. Behind the last linear map
two parts meet that have no trained layer in common, so that one of them can overrule the other.
Skip connections, gates of squeeze and excitation, attention, stems of many branches, class tokens, position
embeddings, and heads that share a trunk are none of these.
"""

from __future__ import annotations

from dataclasses import dataclass

from vetgate.formats.plain_text import escaped
from vetgate.structure.kind import Kind
from vetgate.structure.network import Network
from vetgate.structure.origin import Origin, Origins, gate_of

# names in a path, and letters in a name, that are told
MOST_NAMES, MOST_LETTERS = 12, 60


@dataclass(frozen=True)
class Branch:
    """A value that joins the network at `join` without coming through it, and its way from the image."""

    kind: Kind
    value: str
    join: str
    path: str


def branches_of(network: Network, origins: Origins) -> list[Branch]:
    """Every branch, in the order of where it joins."""
    of, found = origins.of, []
    for join, step in network.steps.items():
        inputs = list(dict.fromkeys(step.inputs))
        raw = [name for name in inputs if of[name] in (Origin.PIXELS, Origin.GATE)]
        if of[join] is Origin.TRAINED:
            if any(of[name] is Origin.TRAINED for name in inputs):
                found += [(Kind.AROUND, name, join) for name in raw]
            else:
                found += [
                    (Kind.IN_FRONT, gate_of(network, origins, name), join) for name in raw if of[name] is Origin.GATE
                ]
    found = _of_one_gate(network, origins, found)
    if of[network.result] is not Origin.TRAINED:
        # no layer of width at all: a linear model, unless something bends its pixels
        bent = of[network.result] is Origin.GATE
        found += [(Kind.IN_FRONT, gate_of(network, origins, network.result), network.result)] if bent else []
    found += [(Kind.BESIDE, name, join) for name, join in _late(network, origins)]
    return [
        Branch(kind, value, join, path_of(network, value, join, origins)) for kind, value, join in dict.fromkeys(found)
    ]


def _of_one_gate(network: Network, origins: Origins, found: list[tuple[Kind, str, str]]) -> list[tuple[Kind, str, str]]:
    """What goes around trained layers in several places as one branch, where a single gate opens them all."""
    around = [one for one in found if one[0] is Kind.AROUND]
    if len(around) < 2:
        return found
    shared = set.intersection(*(network.upstream(value) for _, value, _ in around))
    gates = [name for name in network.steps if name in shared and origins.of[name] is Origin.GATE]
    return [*(one for one in found if one not in around), (Kind.AROUND, gates[-1], around[-1][2])] if gates else found


def _late(network: Network, origins: Origins) -> list[tuple[str, str]]:
    """(value, join) for joins behind the last map of real width, of parts that share no trained layer."""
    widest, found = {name for maps in origins.maps.values() for name in maps}, []
    last = {network.result}
    for join in reversed(network.steps):
        if join not in last or join in widest:
            continue
        inputs = list(dict.fromkeys(network.steps[join].inputs))
        last.update(inputs)
        trained = [name for name in inputs if origins.of[name] is Origin.TRAINED]
        for name in trained:
            if any(not origins.maps[name] & origins.maps[other] for other in trained if other != name):
                found.append((name, join))
    return found[::-1]


def path_of(network: Network, value: str, join: str, origins: Origins) -> str:
    """The way from the image through a value to where it joins, as names of nodes; long ones are cut in the middle."""
    way, name = [], value
    while name in network.steps:
        way.append(_name(network, name))
        inputs = [n for n in network.steps[name].inputs if n in origins.of and origins.of[n] is not Origin.SHAPE]
        name = inputs[0] if inputs else network.image
    names = ["image", *reversed(way), *([_name(network, join)] if join != value else [])]
    if len(names) > MOST_NAMES:
        names = [*names[: MOST_NAMES // 2], "...", *names[-MOST_NAMES // 2 :]]
    return " > ".join(names)


def _name(network: Network, value: str) -> str:
    shown = escaped(network.steps[value].node)
    return shown if len(shown) <= MOST_LETTERS else f"{shown[: MOST_LETTERS - 3]}..."

"""Pixels that travel through trained layers untouched: kernels that copy one input, layer by layer."""

from __future__ import annotations

import torch

from vetgate.structure.network import Network
from vetgate.structure.origin import copying_rows, matrix_of

# so many layers in a row: one kernel of a first layer may happen to look at one pixel
LAYERS = 2


def copied_through(network: Network, shapes: dict[str, torch.Size]) -> str | None:
    """The last value of which a channel is a copy of pixels through LAYERS layers or more; None if there is none.

    `shapes` are those of the values on one image.
    """
    # by value, its channels that are copies, and through how many layers they came
    copies: dict[str, dict[int, int]] = {network.image: dict.fromkeys(range(shapes[network.image][1]), 0)}
    last = None
    for name, step in network.steps.items():
        matrix = matrix_of(network.module(name))
        if matrix is None:
            copies[name] = _carried(copies, [n for n in step.inputs if len(shapes[n]) > 1], shapes, name)
            continue
        given, before = copies[step.inputs[0]], shapes[step.inputs[0]]
        inputs = before[-1] if len(before) == 3 else before[1]
        places = max(1, matrix.shape[1] // inputs)
        rows = copying_rows(matrix).nonzero()[:, 0].tolist()
        taps = {row: int(matrix[row].abs().argmax()) // places for row in rows}
        copies[name] = {row: given[tap] + 1 for row, tap in taps.items() if tap in given}
        if max(copies[name].values(), default=0) >= LAYERS:
            last = name
    return last


def _carried(
    copies: dict[str, dict[int, int]], sources: list[str], shapes: dict[str, torch.Size], name: str
) -> dict[int, int]:
    """The copies among the channels of a value made without weights: those of its inputs, as far as they keep place."""
    found: dict[int, int] = {}
    if len(shapes[name]) < 2:
        return found
    offset, channels = 0, shapes[name][1]
    for source in sources:
        before = shapes[source]
        if before[1] == channels:
            found |= copies[source]
        elif len(shapes[name]) == 2 and channels == before[1:].numel():
            block = channels // before[1]
            found |= {c * block + i: depth for c, depth in copies[source].items() for i in range(block)}
        elif offset + before[1] <= channels and len(sources) > 1:
            found |= {offset + c: depth for c, depth in copies[source].items()}
            offset += before[1]
    return found

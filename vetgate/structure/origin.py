"""Where each value of a network comes from: straight from pixels, through a gate on pixels, or from trained layers.

A value is of trained layers once it passed a convolution or linear map of real width: one whose weights, beside rows
that only copy an input, have a fair share of the rows and of the rank of the widest of the maps that read pixels.
Everything before is arithmetic on pixels, whatever it is called: affine (normalisation, flips, slices, pads, pools) or
bent.

Source    Ours. Bober-Irizar et al., "Architectural Backdoors in Neural Networks", CVPR 2023, wire such paths;
          Langford et al., "Architectural Neural Backdoors from First Principles", arXiv 2402.06957, name their forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from vetgate.structure.network import Network

# of rows and rank of the widest map on pixels, what makes another one a layer
SHARE = 0.25
# a row with this share of its weight in one place copies what stands there
ONE_PLACE = 0.99
ROWS, COLUMNS = 512, 64
# how many bent values in front of the first layer are tried as the one that steers
MOST_GATES = 64


class Origin(IntEnum):
    """What a value is made of: sizes alone, pixels affinely, pixels through what bends them, or trained layers."""

    SHAPE = 0
    PIXELS = 1
    GATE = 2
    TRAINED = 3


@dataclass(frozen=True)
class Origins:
    """The origin of every value, the maps of real width behind it, and what those before any were on a few images."""

    of: dict[str, Origin]
    maps: dict[str, frozenset[str]]
    raw: dict[str, Tensor]


def matrix_of(module: nn.Module) -> Tensor | None:
    """The weights of a convolution or linear map as rows (out, in); None for any other module."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return module.weight.detach().flatten(1)
    return None


def copying_rows(matrix: Tensor) -> Tensor:
    """Of the rows (out, in) which have all but a hundredth of their weight in one place (out,); none of width 1."""
    largest, total = _weights_of_rows(matrix)
    return (largest >= ONE_PLACE * total) & (total > 0) & (matrix.shape[1] > 1)


def width(matrix: Tensor) -> tuple[int, int]:
    """How many rows of weights (out, in) do more than copy or nothing, and their rank, as far as COLUMNS tell it."""
    doing = ((_weights_of_rows(matrix)[1] > 0) & ~copying_rows(matrix)).nonzero()[:, 0]
    if not len(doing):
        return 0, 0
    sketch = torch.randn(matrix.shape[1], COLUMNS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return len(doing), int(torch.linalg.matrix_rank(matrix[doing[:ROWS]].double() @ sketch))


def _weights_of_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The largest size of a weight in each row (out,) and their sum; few rows at a time, since some maps are large."""
    parts = [(rows.amax(1), rows.sum(1)) for rows in map(torch.abs, torch.split(matrix, ROWS))]
    return torch.cat([largest for largest, _ in parts]), torch.cat([total for _, total in parts])


def _wide_maps(network: Network) -> set[str]:
    """The linear maps with a fair share of the rows and of the rank of the widest that reads pixels.

    One that reads few numbers, such as a 1x1 kernel on colours, has as much rank as these allow.
    """
    matrices = {name: m for name in network.steps if (m := matrix_of(network.module(name))) is not None}
    widths = {name: width(matrix) for name, matrix in matrices.items()}
    facing = [widths[name] for name in _facing(network, set(widths))]
    rows, rank = (
        (max(2.0, SHARE * max(seen, default=0)) for seen in zip(*facing, strict=True)) if facing else (2.0, 2.0)
    )
    return {
        name
        for name, (own, of_rank) in widths.items()
        if own >= rows and of_rank >= max(2, min(rank, matrices[name].shape[1]))
    }


def origins_of(network: Network, x: Tensor) -> Origins:
    """The origin of each value that depends on the image, found on a few images x (B, C, H, W)."""
    wide = _wide_maps(network)
    of, maps = {network.image: Origin.PIXELS}, {network.image: frozenset[str]()}
    # what is made of pixels alone is tried on noise, and so its inputs are kept
    raw = {network.image: network.model.input(x)}
    with torch.no_grad():
        for name, step in network.steps.items():
            origin = max(of[n] for n in step.inputs)
            if name in wide:
                origin = Origin.TRAINED
            maps[name] = frozenset({name} & wide).union(*(maps[n] for n in step.inputs))
            if origin is not Origin.TRAINED:
                given = [raw[n] for n in step.inputs]
                raw[name] = network.module(name)(*given)
                if origin is Origin.PIXELS and not network.is_affine(name, given):
                    sizes = _tells_sizes(network.module(name), given, raw[name])
                    origin = Origin.SHAPE if sizes else Origin.GATE
            of[name] = origin
    return Origins(of, maps, raw)


def gate_of(network: Network, origins: Origins, value: str) -> str:
    """The last bent value without which `value`, bent too, were affine in the pixels; `value` itself if there is none.

    Held still, it leaves of what it steers only arithmetic that is harmless: it alone opens and shuts.
    """
    above = [name for name in network.steps if name in network.upstream(value) and name != value]
    gates = [name for name in above if origins.of[name] is Origin.GATE]
    for gate in reversed(gates[-MOST_GATES:]):
        if _affine_without(network, origins, [*above, value], gate):
            return gate
    return value


def _affine_without(network: Network, origins: Origins, order: list[str], gate: str) -> bool:
    still = {gate, *(name for name, origin in origins.of.items() if origin is Origin.SHAPE)}
    for name in order:
        inputs = network.steps[name].inputs
        if name in still or origins.of[name] is not Origin.GATE:
            continue
        fixed = [n in still for n in inputs]
        if all(fixed):
            still.add(name)
        elif not network.is_affine(name, [origins.raw[n] for n in inputs], fixed):
            return False
    return True


def _tells_sizes(module: nn.Module, given: list[Tensor], made: Tensor) -> bool:
    """Whether what a module made are sizes: whole numbers that stay the same whatever numbers it is given.

    A comparison may stay the same on whatever is tried, and is none.
    """
    if made.is_floating_point() or made.dtype is torch.bool or made.ndim > 1:
        return False
    noise = torch.Generator().manual_seed(0)
    other = [100 * torch.randn(g.shape, generator=noise) if g.is_floating_point() else g for g in given]
    return torch.equal(made, module(*other))


def _facing(network: Network, linear: set[str]) -> list[str]:
    """The linear maps that no other one stands before."""
    behind, found = {network.image: False}, []
    for name, step in network.steps.items():
        after = any(behind[n] for n in step.inputs)
        if name in linear and not after:
            found.append(name)
        behind[name] = after or name in linear
    return found

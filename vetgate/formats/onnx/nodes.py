"""What a graph is made of: operators and constants, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vetgate.errors import NotUnderstood

# beyond these, a factor or an exponent leaves float32, each runtime in its own way
SMALLEST, LARGEST = 1e-15, 1e5
Value = float | int | str | np.ndarray | tuple[float, ...] | tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One operator; `position` is its place in the file."""

    position: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Value]

    def __str__(self) -> str:
        return f"{self.op} node {self.name or self.outputs[0]!r}"


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that the file holds, in an initializer or in a Constant node, at `position` there."""

    value: np.ndarray
    position: int
    is_node: bool


def check_factors(node: Node) -> None:
    """Raise NotUnderstood for an attribute that is a number too small or too large for what it multiplies."""
    for name, value in node.attributes.items():
        if isinstance(value, float) and not (value == 0 or SMALLEST <= abs(value) <= LARGEST):
            raise NotUnderstood(
                f"expected {name} of {SMALLEST:.0e} to {LARGEST:.0e} or zero for {node}, got {value:.3g}; export the "
                "model without it"
            )

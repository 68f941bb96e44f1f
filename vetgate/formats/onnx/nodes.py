"""What a graph is made of: operators and constants, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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

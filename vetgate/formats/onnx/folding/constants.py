"""What everything that computes with constants shares: their types, how large they may be, and what refuses them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.nodes import Node

MAX_FOLDED = 1 << 26
# whole numbers are computed exactly, one by one
MAX_WHOLE = 1 << 16
EXACT_IN_FLOAT32 = 1 << 24
TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_}
Array = np.ndarray
Given = Sequence[Array | None]


def refuse(node: Node, expected: str, got: str) -> NotUnderstood:
    """The error for what cannot be written anew."""
    return NotUnderstood(f"expected {expected} for {node}, got {got}; export the model without it")


def exact(node: Node, value: Array, kind: np.dtype) -> Array:
    """Whole numbers (of any size, as objects) in the type `kind`; refuses what does not fit in it."""
    bounds = np.iinfo(kind)
    flat = value.reshape(-1)
    if any(not bounds.min <= int(v) <= bounds.max for v in flat):
        raise refuse(node, f"whole numbers that fit in {kind}", "larger ones, which runtimes wrap or saturate")
    made: Array = np.array([int(v) for v in flat], kind).reshape(value.shape)
    return made


def axes_of(node: Node, given: Given, index: int) -> list[int] | None:
    """Axes, an attribute in older opsets and an input in newer ones, or None."""
    named = node.attributes.get("axes")
    if isinstance(named, tuple):
        return [int(v) for v in named]
    value = given[index] if index < len(given) else None
    return None if value is None else [int(v) for v in value.reshape(-1)]


def first(given: Given) -> Array:
    value = given[0] if given else None
    if value is None:
        raise ValueError("the first input is missing")
    return value


def integer(node: Node, name: str, default: int) -> int:
    value = node.attributes.get(name, default)
    return value if isinstance(value, int) else default


def whole_list(node: Node, given: Given, index: int, name: str) -> list[int] | None:
    named = node.attributes.get(name)
    if isinstance(named, tuple):
        return [int(v) for v in named]
    value = given[index] if index < len(given) else None
    if value is None:
        return None
    if value.dtype not in (np.int64, np.int32) or value.ndim > 1:
        raise refuse(node, f"{name} as whole numbers", f"{value.dtype} of shape {value.shape}")
    return [int(v) for v in value.reshape(-1)]

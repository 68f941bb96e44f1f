"""What may be computed from the number of images: sizes that grow with it, and nothing else.

Two batches tell what holds for every batch only of numbers that are a + b * N. So these are moved, added, scaled and
compared with what they never equal, and no number of another kind comes of them. A list of the images' places may be
counted up to their number, and what is the same row for each image may be computed with like a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.nodes import Node

# moved and joined; added; and what takes a shape, whose own numbers are constant
MOVED = ("Identity", "Gather", "Concat", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Shape", "Where")
ADDED = ("Add", "Sub", "Neg")
SHAPED = ("Expand", "ConstantOfShape")
Pair = tuple[np.ndarray, ...]


def check_sizes(node: Node, given: Sequence[Pair | None], batches: tuple[int, int]) -> None:
    """Refuse an operator that makes something else of sizes; `given` are its inputs for each of `batches`."""
    moving = [i for i, pair in enumerate(given) if pair is not None and not _alike(pair)]
    if all(rows_alike(given[i], batches) for i in moving) or (node.op == "Range" and moving == [1]):
        return
    whole = all(value.dtype in (np.int64, np.int32) for i in moving for value in given[i] or ())
    if node.op in SHAPED or (not whole and node.op in ("Squeeze", "Unsqueeze", "Reshape", "Shape")):
        return
    sound = whole and (
        (node.op in MOVED and node.attributes.get("to", 7) in (6, 7) and (node.op != "Where" or 0 not in moving))
        or node.op in ADDED
        or (node.op == "Mul" and len(moving) == 1)
        or (node.op == "Div" and moving == [0] and _divides(given[0], given[1], batches))
        or (node.op == "Equal" and _never_equal(given[0], given[1], batches))
    )
    if not sound:
        raise NotUnderstood(
            f"expected {node} to treat each image of a batch alone, got how many there are among its numbers; export "
            "the model with the batch as first axis throughout"
        )


def rows_alike(pair: Pair | None, batches: tuple[int, int]) -> bool:
    """Whether constants are the same for each image, such as the position of a patch."""
    return pair is not None and all(
        value.ndim > 1
        and len(value) == batch
        and value.shape[1:] == pair[0].shape[1:]
        and bool((value == pair[0][:1]).all())
        for value, batch in zip(pair, batches, strict=True)
    )


def line(pair: Pair, batches: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Start and slope of numbers that grow with the batch, from what they are for each of `batches`."""
    slope = (pair[1] - pair[0]) // (batches[1] - batches[0])
    return pair[0] - batches[0] * slope, slope


def _alike(pair: Pair) -> bool:
    return all(value.shape == pair[0].shape and np.array_equal(value, pair[0]) for value in pair[1:])


def _divides(pair: Pair | None, by: Pair | None, batches: tuple[int, int]) -> bool:
    if pair is None or by is None or pair[0].shape != pair[1].shape or bool((by[0] == 0).any()):
        return False
    return all(bool((part % by[0] == 0).all()) for part in line(pair, batches))


def _never_equal(one: Pair | None, two: Pair | None, batches: tuple[int, int]) -> bool:
    if one is None or two is None or one[0].shape != one[1].shape or two[0].shape != two[1].shape:
        return False
    (start, slope), (other, rise) = line(one, batches), line(two, batches)
    apart, steps = np.broadcast_arrays(other - start, slope - rise)
    for gap, step in zip(apart.reshape(-1).tolist(), steps.reshape(-1).tolist(), strict=True):
        if step and gap % step == 0 and gap // step >= 1:
            return False
    return True

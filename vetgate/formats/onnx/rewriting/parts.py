"""How parts of a value are taken and put together: cuts, positions, borders and values side by side.

None of them may depend on how many images there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vetgate.formats.onnx.folding.arrangement import cuts, split_sizes
from vetgate.formats.onnx.rewriting.sizes import line
from vetgate.formats.onnx.rewriting.walk import BATCHES, Rewrite

# a batch that nobody runs
MANY = 10**6


def concat(r: Rewrite) -> str:
    """Values side by side; constants as a border that is added to."""
    if "axis" not in r.node.attributes:
        raise r.refuse("an axis", "none")
    roots = [r.walk.root(name) for name in r.node.inputs]
    live = [i for i, name in enumerate(roots) if name in r.walk.tensors]
    rank = len(r.shapes(live[0])[0])
    axis = r.integer("axis", 0)
    if not -rank <= axis < rank:
        raise r.refuse(f"an axis of {rank}", str(axis))
    axis %= rank
    if len(roots) == 1:
        return roots[0]
    if len(live) == len(roots):
        return r.write("Concat", roots, {"axis": axis}, output=r.result)
    return _beside(r, roots, live, axis)


def _beside(r: Rewrite, roots: list[str], live: list[int], axis: int) -> str:
    # rows that are the same for every image, such as a class token, beside what the image gives: a border of zeros,
    # and then the rows are added
    shape = r.shapes(live[0])[0]
    if len(live) != 1 or r.shapes(live[0])[0][axis] != r.shapes(live[0])[1][axis]:
        raise r.refuse("one computed input beside constants", f"{len(live)}, along axis {axis}")
    rows: list[np.ndarray] = []
    for i, name in enumerate(roots):
        if i in live:
            rows.append(np.zeros((1, *shape[1:]), np.float32))
            continue
        row = r.row(i) if name in r.walk.numbers else r.walk.constants[name]
        if row.dtype != np.float32 or row.ndim != len(shape) or len(row) != 1:
            raise r.refuse("float32 rows that are the same for every image", f"{row.dtype} of shape {row.shape}")
        rows.append(row)
    added = np.concatenate(rows, axis)
    before = sum(row.shape[axis] for row in rows[: live[0]])
    after = added.shape[axis] - before - shape[axis]
    widths = [0] * (2 * len(shape))
    widths[axis], widths[len(shape) + axis] = before, after
    padded = r.write("Pad", [roots[live[0]], r.hold(np.array(widths, np.int64))], {"mode": "constant"})
    return r.write("Add", [padded, r.hold(added)], output=r.result)


def pad(r: Rewrite) -> str:
    """A border around the image."""
    rank, mode = r.rank, r.text("mode", "constant")
    named, value = r.integers("pads") or r.integers("paddings"), r.constant(2)
    pads = named if named is not None else [int(v) for v in (r.either(1)[0] if r.constant(1) is not None else ())]
    over = r.constant(3)
    axes = list(range(rank)) if over is None else [int(v) % rank for v in over.reshape(-1) if -rank <= v < rank]
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise r.refuse("two widths for each axis", f"{pads} for axes {axes}")
    widths = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        widths[axis], widths[rank + axis] = pads[i], pads[i + len(axes)]
    if not any(widths):
        return r.name(0)
    if mode != "constant" and any(width < 0 for width in widths):
        raise r.refuse("a border", f"{mode} with negative widths, which runtimes take in two ways")
    border = r.real("value", 0.0) if value is None else float(value.reshape(-1)[0]) if value.size == 1 else math.nan
    if not math.isfinite(border):
        raise r.refuse("a finite number around the image", "another")
    held = r.hold(np.array(border, np.float32)) if mode == "constant" and border else ""
    return r.write("Pad", [r.name(0), r.hold(np.array(widths, np.int64)), held], {"mode": mode}, output=r.result)


def gather(r: Rewrite) -> str:
    """Constant positions along an axis."""
    axis = r.axis(0)
    if r.grows(axis):
        return _gather_each(r, axis)
    size, index = r.shapes()[0][axis], r.constant(1)
    if index is None or index.dtype not in (np.int64, np.int32):
        raise r.refuse("constant positions", "others")
    if bool(((index < -size) | (index >= size)).any()):
        raise r.refuse(f"positions within {size}", str(index.reshape(-1)[:8].tolist()))
    held = r.hold(np.asarray(index.astype(np.int64) % size))
    return r.write("Gather", [r.name(0), held], {"axis": axis}, output=r.result)


def _gather_each(r: Rewrite, axis: int) -> str:
    # positions among the values of all images in a row, where they are the same ones of each
    shapes, found = r.shapes(), []
    each = shapes[0][axis] // BATCHES[0]
    for index, batch in zip(r.either(1), BATCHES, strict=True):
        count = batch if r.walk.batch is None else r.walk.batch
        if index.dtype not in (np.int64, np.int32) or index.ndim < 2 or len(index) != count or axis:
            raise r.refuse("to treat each image of a batch alone", "positions along the batch")
        start = np.arange(count).reshape(-1, *[1] * (index.ndim - 1)) * each
        places = index.astype(np.int64) - start
        if bool((places != places[:1]).any() or (places < 0).any() or (places >= each).any()):
            raise r.refuse("to treat each image of a batch alone", "positions that lead to others")
        found.append(places[0])
    if not np.array_equal(found[0], found[1]):
        raise r.refuse("the same positions for each batch size", "others")
    apart = r.hold(np.array([-1, each, *shapes[0][1:]], np.int64))
    rows = r.write("Reshape", [r.name(0), apart])
    return r.write("Gather", [rows, r.hold(found[0])], {"axis": 1}, output=r.result)


def take(r: Rewrite) -> str:
    """A cut along axes."""
    taken: list[tuple[int, int, int, int]] = []
    # what leaves all of a few images may still leave some of many
    for batch in (*BATCHES, 1, MANY):
        sizes = tuple(int(size) for size in _at(batch, r.shapes()))
        named = [None, *(_at(batch, r.either(i)) if r.given(i) else None for i in range(1, 5))]
        found = sorted((axis, *cut) for axis, *cut in cuts(r.node, named, sizes) if tuple(cut) != (0, sizes[axis], 1))
        if any(r.grows(axis) for axis, *_ in found) or (batch != BATCHES[0] and found != taken):
            raise r.refuse("to treat each image of a batch alone", f"a cut that takes {found} of {batch} images")
        taken = found  # type: ignore[assignment]
    return _cut(r, taken)


def _at(batch: int, pair: Sequence[Any]) -> np.ndarray:
    # what numbers are for so many images
    start, slope = line((np.array(pair[0]), np.array(pair[1])), BATCHES)
    return np.asarray(start + batch * slope)


def _cut(r: Rewrite, taken: list[tuple[int, int, int, int]], *, output: str = "") -> str:
    if not taken:
        return r.name(0)
    shape = r.shapes()[0]
    if any(step < 1 or start >= end for _, start, end, step in taken):
        backwards = [c for c in taken if c[3] < 0]
        if len(backwards) != len(taken) or any(not len(range(*c[1:])) for c in taken):
            raise r.refuse("cuts that leave something", str(taken))
        # backwards: the same rows by their positions
        name = r.name(0)
        for place, (axis, start, end, step) in enumerate(backwards, start=1):
            rows = r.hold(np.array(range(start, end, step), np.int64))
            last = (output or r.result) if place == len(backwards) else ""
            name = r.write("Gather", [name, rows], {"axis": axis}, output=last)
        return name
    if any(end > shape[axis] for axis, _, end, _ in taken):
        raise r.refuse("a cut within the tensor", str(taken))
    columns = [r.hold(np.array(column, np.int64)) for column in zip(*taken, strict=True)]
    axes, starts, ends, steps = columns
    return r.write("Slice", [r.name(0), starts, ends, axes, steps], output=output or r.result)


def split(r: Rewrite) -> None:
    """Every part as a cut of its own."""
    # every part is a cut of its own
    axis = r.axis(0)
    if r.grows(axis):
        raise r.refuse("to treat each image of a batch alone", "a split along the batch")
    size = r.shapes()[0][axis]
    begin = 0
    for output, length in zip(r.node.outputs, split_sizes(r.node, [None, r.constant(1)], size), strict=True):
        if output:
            name = _cut(r, [(axis, begin, begin + length, 1)] if length != size else [], output=output)
            if name != output:
                r.walk.aliases[output] = r.walk.root(name)
        begin += length

"""How the axes of a value are written: for any number of images, each of which stays apart from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vetgate.formats.onnx.rewriting.walk import BATCHES, Rewrite, Shape


def squeeze(r: Rewrite) -> str:
    """Axes of size one left out."""
    axes = axes_of(r, r.rank)
    if not axes:
        raise r.refuse("axes to squeeze", "none, which depends on the batch size")
    return r.write("Squeeze", [r.name(0), held_axes(r, axes)], output=r.result)


def unsqueeze(r: Rewrite) -> str:
    """Axes of size one put in."""
    named = r.integers("axes")
    count = len(named) if named is not None else 0 if (value := r.constant(1)) is None else value.size
    axes = axes_of(r, r.rank + count)
    if not axes:
        raise r.refuse("axes", "none")
    return r.write("Unsqueeze", [r.name(0), held_axes(r, axes)], output=r.result)


def reshape(r: Rewrite) -> str:
    """Another shape, in which images stay apart."""
    keep_zero, shapes = r.integer("allowzero", 0), r.shapes()
    growing = [i for i in range(r.rank) if r.grows(i)]
    made: list[Shape] = []
    for target, shape, batch in zip(r.either(1), shapes, BATCHES, strict=True):
        if target.dtype != np.int64 or target.ndim != 1:
            raise r.refuse("a shape as a list of int64", f"{target.dtype} of shape {target.shape}")
        sizes = [int(v) for v in target]
        fixed = r.walk.batch if growing else None
        if fixed is not None:
            # as it is for the batch size that was fixed on export
            shape = tuple(size // batch * fixed if i in growing else size for i, size in enumerate(shape))
        if not keep_zero:
            sizes = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(sizes)]
        whole = _resolved(r, sizes, shape)
        made.append(whole if fixed is None else _freed(r, whole, math.prod(shape[: growing[0]]), fixed, batch))
    return _reshaped(r, made)


def _freed(r: Rewrite, sizes: Shape, before: int, fixed: int, batch: int) -> Shape:
    # one image after the other stays so: along the axis before which there is as much as there was
    for i, size in enumerate(sizes):
        if math.prod(sizes[:i]) == before and size % fixed == 0:
            return (*sizes[:i], size // fixed * batch, *sizes[i + 1 :])
    raise r.refuse(f"a shape that keeps the {fixed} images of a batch apart", str(sizes))


def _resolved(r: Rewrite, sizes: list[int], shape: Shape) -> Shape:
    total = math.prod(shape)
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise r.refuse("a shape with at most one -1", str(sizes))
    if -1 in sizes:
        rest = -math.prod(sizes)
        sizes[sizes.index(-1)] = total // rest if rest and total % rest == 0 else 0
    if math.prod(sizes) != total:
        raise r.refuse(f"a shape of {total} values for a batch of shape {shape}", str(sizes))
    return tuple(sizes)


def _reshaped(r: Rewrite, made: list[Shape]) -> str:
    # the same sizes for every batch but for one, which grows with it
    if made == list(r.shapes()):
        return r.name(0)
    return r.write("Reshape", [r.name(0), growing(r, made)], output=r.result)


def growing(r: Rewrite, made: Sequence[Shape]) -> str:
    """The shape for any batch, held, from those `made` for each of BATCHES."""
    # the shape for any batch, held
    one, two = made
    moving = [i for i in range(len(one)) if len(one) == len(two) and one[i] != two[i]]
    if len(one) != len(two) or len(moving) != 1 or one[moving[0]] * BATCHES[1] != two[moving[0]] * BATCHES[0]:
        raise r.refuse("one size that grows with the batch", f"{one} and {two} for batches of {BATCHES}")
    return r.hold(np.array([-1 if i == moving[0] else size for i, size in enumerate(one)], np.int64))


def flatten(r: Rewrite) -> str:
    """All axes before one together, and all from it on."""
    axis = r.integer("axis", 1)
    if not -r.rank <= axis <= r.rank:
        raise r.refuse(f"an axis of {r.rank}", str(axis))
    axis = axis + r.rank if axis < 0 else axis
    if axis == 1 and r.rank > 2:
        return r.write("Flatten", [r.name(0)], {"axis": 1}, output=r.result)
    return _reshaped(r, [(math.prod(shape[:axis]), math.prod(shape[axis:])) for shape in r.shapes()])


def transpose(r: Rewrite) -> str:
    """Another order of axes."""
    perm = r.integers("perm") or list(reversed(range(r.rank)))
    if sorted(perm) != list(range(r.rank)):
        raise r.refuse(f"an order of {r.rank} axes", str(perm))
    return r.transposed(r.name(0), perm, output=r.result)


def expand(r: Rewrite) -> str:
    """Rows repeated within each image."""
    shapes, made = r.shapes(), []
    for shape, target in zip(shapes, r.either(1), strict=True):
        made.append(tuple(int(v) for v in np.broadcast_shapes(shape, tuple(int(v) for v in target))))
    if made == list(shapes):
        return r.name(0)
    fixed = [i for i in range(len(made[0])) if made[0][i] != made[1][i]]
    offset = len(made[0]) - len(shapes[0])
    if any(i < offset or made[0][i] != shapes[0][i - offset] for i in fixed):
        raise r.refuse("no row that is repeated with the batch", f"{shapes[0]} to {made[0]}")
    kept = [1 if i in fixed else size for i, size in enumerate(made[0])]
    return r.write("Expand", [r.name(0), r.hold(np.array(kept, np.int64))], output=r.result)


def axes_of(r: Rewrite, rank: int) -> tuple[int, ...]:
    """The axes that a node names, of so many, counted from the front."""
    named = r.integers("axes")
    value = r.constant(1) if named is None else None
    axes = named if named is not None else [] if value is None else [int(v) for v in value.reshape(-1)]
    if any(not -rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) != len(axes):
        raise r.refuse(f"different axes of {rank}", str(axes))
    return tuple(sorted(axis % rank for axis in axes))


def held_axes(r: Rewrite, axes: tuple[int, ...]) -> str:
    """Axes, held as a constant."""
    return r.hold(np.array(axes, np.int64))

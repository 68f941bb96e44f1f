"""Large arrays a piece at a time, so that what is done with one takes no second one; and files that are mapped.

A mapped file is resident as far as it was read, so what was copied out of it is let go of at once.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

import numpy as np

from vetgate.formats.manifest import Bytes

PIECE = 1 << 22


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of an array as arrays (n,) of at most PIECE bytes; views, where it lies in one piece of memory."""
    flat = array.reshape(-1)
    step = max(1, PIECE // array.itemsize)
    yield from (flat[at : at + step] for at in range(0, flat.size, step))


def copied(data: Bytes, start: int, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    """The numbers that lie in `data` from the byte `start` on, in an array of its own memory."""
    made = np.empty(tuple(shape), dtype)
    at = start
    for piece in pieces(made.reshape(-1).view(np.uint8)):
        piece[:] = np.frombuffer(data, np.uint8, piece.size, at)
        at += piece.size
        let_go(data, at - piece.size, at)
    return made


def whole(data: Bytes) -> bytes:
    """All of `data`, for what takes nothing that is mapped."""
    made = bytes(data)
    let_go(data, 0, len(made))
    return made


def let_go(data: Bytes, start: int, stop: int) -> None:
    """Say that the whole pages between two bytes are not read again soon, where `data` is mapped."""
    if not isinstance(data, memoryview) or not isinstance(data.obj, mmap.mmap):
        return
    start -= start % mmap.PAGESIZE
    stop -= stop % mmap.PAGESIZE
    if start < stop:
        data.obj.madvise(mmap.MADV_DONTNEED, start, stop - start)

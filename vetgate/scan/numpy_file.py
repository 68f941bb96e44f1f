"""numpy's .npy: a header that says how many bytes of numbers follow; an array of objects is a pickle."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from vetgate.scan.inspection import Place
from vetgate.scan.pickles.streams import read_pickles
from vetgate.scan.rules import CORRUPT, HIDDEN_BYTES, PICKLE_OBJECTS
from vetgate.scan.source import BrokenFileError, Part, Source

MAGIC = b"\x93NUMPY"
MAX_HEADER = 1 << 16
DTYPE = re.compile(r"[<>=|]?([?biufcSUVmM])([0-9]{0,6})(\[[A-Za-z0-9]{1,8}\])?")
OBJECT = re.compile(r"[<>=|]?O[0-9]?")


def read_npy(source: Source, at: Place) -> None:
    """Inspect a .npy file."""
    version = source.read(6, 2)
    if version not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise BrokenFileError(CORRUPT, f"version {version!r} of the format")
    width = 2 if version[0] == 1 else 4
    size = int.from_bytes(source.read(8, width), "little")
    if size > MAX_HEADER:
        raise BrokenFileError(CORRUPT, f"a header of {size} bytes")
    begin = 8 + width + size
    try:
        header = ast.literal_eval(source.read(8 + width, size).decode("utf-8" if version[0] == 3 else "latin-1"))
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise BrokenFileError(CORRUPT, f"a header that cannot be read: {type(error).__name__}") from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise BrokenFileError(CORRUPT, "a header without descr, fortran_order and shape")
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(s) is int and 0 <= s < 1 << 62 for s in shape) or len(shape) > 64:
        raise BrokenFileError(CORRUPT, f"the shape {shape!r:.60}")
    if (item := _item_size(header["descr"])) is None:
        at.found(PICKLE_OBJECTS, "an array of objects, which is pickled")
        read_pickles(Part(source, begin, source.size - begin), at)
        return
    wanted = begin + math.prod(shape) * item
    if wanted > source.size:
        raise BrokenFileError(CORRUPT, f"{wanted} bytes are said, and {source.size} there")
    if wanted < source.size:
        at.found(HIDDEN_BYTES, f"{source.size - wanted} bytes after the array")
        at.inside(f"(bytes {wanted} to {source.size})", Part(source, wanted, source.size - wanted))


def _item_size(descr: Any) -> int | None:
    """Bytes of an element; None where there are objects in it."""
    if isinstance(descr, str):
        if OBJECT.fullmatch(descr):
            return None
        known = DTYPE.fullmatch(descr)
        if known is None:
            raise BrokenFileError(CORRUPT, f"the type {descr[:40]!r}")
        return int(known[2] or 1) * (4 if known[1] == "U" else 1)
    if not isinstance(descr, list) or not descr:
        raise BrokenFileError(CORRUPT, "a type that cannot be read")
    total = 0
    for entry in descr:
        if not isinstance(entry, tuple) or len(entry) not in (2, 3):
            raise BrokenFileError(CORRUPT, "a field that cannot be read")
        size, repeats = _item_size(entry[1]), entry[2] if len(entry) == 3 else ()
        if size is None:
            return None
        if not isinstance(repeats, tuple) or not all(type(r) is int and 0 <= r < 1 << 32 for r in repeats):
            raise BrokenFileError(CORRUPT, "a field of a shape that cannot be read")
        total += size * math.prod(repeats)
    return total

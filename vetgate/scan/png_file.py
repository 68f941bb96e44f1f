"""PNG: chunks, each with its sum, from the header to the end; pictures lie beside models, and are no place to hide."""

from __future__ import annotations

import zlib

from vetgate.scan.inspection import Place
from vetgate.scan.rules import CORRUPT, HIDDEN_BYTES
from vetgate.scan.source import BrokenFileError, Part, Source

MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_CHUNK = 1 << 26


def read_png(source: Source, at: Place) -> None:
    """Inspect a PNG file: its chunks, not its pixels."""
    here, kind = len(MAGIC), b""
    while kind != b"IEND":
        size, kind = int.from_bytes(source.read(here, 4), "big"), source.read(here + 4, 4)
        if size > MAX_CHUNK or not kind.isalpha() or (here == len(MAGIC)) != (kind == b"IHDR"):
            raise BrokenFileError(CORRUPT, f"no chunk of PNG at byte {here}")
        if zlib.crc32(source.read(here + 4, 4 + size)) != int.from_bytes(source.read(here + 8 + size, 4), "big"):
            raise BrokenFileError(CORRUPT, f"a chunk whose sum is another one at byte {here}")
        here += 12 + size
    if here < source.size:
        at.found(HIDDEN_BYTES, f"{source.size - here} bytes after the picture, at byte {here}")
        at.inside(f"(bytes {here} to {source.size})", Part(source, here, source.size - here))

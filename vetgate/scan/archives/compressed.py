"""Compressed bytes, unpacked piece by piece under the limits of the inspection: gzip, bzip2, xz, lzma, zlib."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from vetgate.scan.inspection import Place
from vetgate.scan.rules import CORRUPT, HIDDEN_BYTES
from vetgate.scan.source import CHUNK, BrokenFileError, Part, Source, Spool

# an lzma dictionary may be told to be gigabytes
LZMA_MEMORY = 128 << 20
MAX_STREAMS = 1000
ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)
Opener = Callable[[], Any]
OPENERS: dict[str, Opener] = {
    "gzip": lambda: zlib.decompressobj(31),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LZMA_MEMORY),
    "zlib": lambda: zlib.decompressobj(15),
    "deflate": lambda: zlib.decompressobj(-15),
}


def unpack(source: Source, start: int, kind: str, at: Place, spool: Spool) -> tuple[int, bool]:
    """Unpack the stream from `start` on into `spool`: where it ends, and whether it came to its end."""
    opened, given, piece, before = OPENERS[kind](), start, b"", spool.size
    try:
        while not opened.eof:
            if not piece and getattr(opened, "needs_input", True):
                piece = source.read(given, min(CHUNK, source.size - given))
                given += len(piece)
            made = opened.decompress(piece, CHUNK)
            if not made and not piece:
                return given, False
            # zlib hands back what it did not come to, the others keep it
            piece = getattr(opened, "unconsumed_tail", b"")
            at.inspection.unpack(len(made), given - len(piece) - start, spool.size + len(made) - before)
            spool.write(made)
    except ERRORS as error:
        at.found(CORRUPT, f"{kind}: {error}")
        return given, False
    return given - len(opened.unused_data), True


def read_compressed(source: Source, at: Place, kind: str) -> None:
    """Inspect what a compressed file holds, stream after stream, and what follows the last one."""
    content, start, whole = Spool(), 0, True
    magic = source.read(0, 2)
    for _ in range(MAX_STREAMS):
        start, whole = unpack(source, start, kind, at, content)
        more = kind not in ("zlib", "lzma") and source.size - start > 2 and source.read(start, 2) == magic
        if not whole or not more:
            break
    at.inside(_inner(at.name), content)
    if not whole:
        at.found(CORRUPT, f"a {kind} stream that does not come to its end")
    elif start < source.size:
        at.found(HIDDEN_BYTES, f"{source.size - start} bytes after the {kind} stream")
        at.inside(f"(bytes {start} to {source.size})", Part(source, start, source.size - start))


def is_zlib(source: Source) -> bool:
    """Whether bytes begin as a zlib stream does, and can be unpacked at first."""
    head = source.read(0, min(512, source.size))
    if len(head) < 8 or head[0] != 0x78 or (head[0] << 8 | head[1]) % 31 or head[1] & 0x20:
        return False
    try:
        return bool(zlib.decompressobj().decompress(head, 64))
    except zlib.error:
        return False


def unpacked_member(source: Source, start: int, packed: int, kind: str, at: Place) -> Source:
    """What a member of an archive unpacks to; its packed bytes must be used up to the last one."""
    spool = Spool()
    stop, whole = unpack(Part(source, start, packed), 0, kind, at, spool)
    if not whole or stop != packed:
        at.found(CORRUPT, f"{packed - stop} packed bytes are left" if whole else f"a {kind} stream without an end")
    return spool


def checked_crc(source: Source, crc: int) -> None:
    """Raise BrokenFileError unless the CRC-32 of the bytes is this one."""
    got = 0
    for place in range(0, source.size, 1 << 20):
        got = zlib.crc32(source.read(place, min(1 << 20, source.size - place)), got)
    if got != crc:
        raise BrokenFileError(CORRUPT, f"a CRC-32 of {got:08x} where {crc:08x} is said")


def _inner(name: str) -> str:
    for ending in (".gz", ".bz2", ".xz", ".lzma", ".z", ".tgz"):
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)] + (".tar" if ending == ".tgz" else "")
    return "(content)"

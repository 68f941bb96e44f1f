"""The members of a tar archive (ustar, pax, GNU), every block accounted for."""

from __future__ import annotations

import re

from vetgate.scan.archives.zip_directory import unsafe_name
from vetgate.scan.inspection import MAX_MEMBERS, Place
from vetgate.scan.rules import CORRUPT, DUPLICATE, HIDDEN_BYTES, LIMIT, LINK, UNKNOWN
from vetgate.scan.source import BrokenFileError, Part, Source

BLOCK = 512
ZEROS = bytes(BLOCK)
MAX_LONG = 1 << 16
FILES, DIRECTORY, LINKS = (b"0", b"\0", b"7"), b"5", (b"1", b"2", b"3", b"4", b"6")
PAX = re.compile(rb"([1-9][0-9]{0,6}) ([^=]{1,64})=")
# keys of pax headers that change nothing but times, owners and notes
HARMLESS = re.compile(r"[acm]time|[ug]id|[ug]name|comment|SCHILY\.(dev|ino|nlink)|LIBARCHIVE\.creationtime")


def is_tar(source: Source) -> bool:
    """Whether the first block is a header with a checksum that fits."""
    return source.size >= BLOCK and _sum_fits(source.read(0, BLOCK))


def read_tar(source: Source, at: Place) -> None:
    """Inspect a tar archive."""
    here, names, count = 0, set(), 0
    long: dict[str, str] = {}
    while here < source.size:
        header = source.read(here, BLOCK)
        if header == ZEROS:
            break
        if not _sum_fits(header):
            raise BrokenFileError(CORRUPT, f"no tar header at byte {here}")
        count += 1
        if count > MAX_MEMBERS:
            raise BrokenFileError(LIMIT, f"more than {MAX_MEMBERS} members")
        size, kind = _number(header[124:136]), header[156:157]
        here += BLOCK
        name = long.get("path") or _own_name(header)
        if kind in (b"L", b"K", b"x", b"g"):
            long |= _extended(source, here, size, kind, at)
        else:
            if "size" in long:
                size = _decimal(long["size"])
            _member(source, here, size, kind, name, header, long, at)
            if name in names:
                at.found(DUPLICATE, name)
            names.add(name)
            long = {}
        here = _padded(source, here + (0 if kind in LINKS else size), at)
    _after(source, here, at)


def _member(
    source: Source, here: int, size: int, kind: bytes, name: str, header: bytes, long: dict[str, str], at: Place
) -> None:
    unsafe_name(name, at)
    if kind in FILES:
        at.inside(name, Part(source, here, size))
    elif kind in LINKS:
        target = long.get("linkpath") or _text(header[157:257])
        at.found(LINK, f"{name} leads to {target}")
        unsafe_name(target, at)
    elif kind != DIRECTORY or size:
        at.found(UNKNOWN, f"{name} of kind {kind!r}")
        at.inside(name, Part(source, here, size))


def _extended(source: Source, here: int, size: int, kind: bytes, at: Place) -> dict[str, str]:
    if size > MAX_LONG:
        raise BrokenFileError(LIMIT, f"a header of {size} bytes")
    data = source.read(here, size)
    if kind in (b"L", b"K"):
        return {"path" if kind == b"L" else "linkpath": _text(data)}
    found: dict[str, str] = {}
    while data:
        match = PAX.match(data)
        length = int(match[1]) if match else 0
        if match is None or not match.end() < length <= len(data) or data[length - 1 : length] != b"\n":
            raise BrokenFileError(CORRUPT, "a pax header that is none")
        key, value = match[2].decode("latin-1"), data[match.end() : length - 1].decode("utf-8", "replace")
        if key in ("path", "linkpath", "size") and kind == b"x" and key not in found:
            found[key] = value
        elif not HARMLESS.fullmatch(key):
            at.found(UNKNOWN, f"the pax header {key}")
        data = data[length:]
    return found


def _after(source: Source, here: int, at: Place) -> None:
    """Nothing but zeros may follow the last member."""
    for start in range(here, source.size, 1 << 20):
        piece = source.read(start, min(1 << 20, source.size - start))
        if piece.strip(b"\0"):
            start += len(piece) - len(piece.lstrip(b"\0"))
            at.found(HIDDEN_BYTES, f"bytes after the last member, at byte {start}")
            at.inside(f"(bytes {start} to {source.size})", Part(source, start, source.size - start))
            return
    if source.size - here < 2 * BLOCK:
        at.found(CORRUPT, "a tar archive without an end")


def _padded(source: Source, here: int, at: Place) -> int:
    stop = -(-here // BLOCK) * BLOCK
    if stop > source.size:
        raise BrokenFileError(CORRUPT, "a tar archive that ends within a block")
    if source.read(here, stop - here).strip(b"\0"):
        at.found(HIDDEN_BYTES, f"bytes between members at byte {here}")
    return stop


def _own_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]{0,12}", digits):
        raise BrokenFileError(CORRUPT, f"the size {field!r}")
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise BrokenFileError(CORRUPT, f"the size {text[:40]!r}")
    return int(text)


def _sum_fits(header: bytes) -> bool:
    digits = header[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,8}", digits):
        return False
    return int(digits, 8) == sum(header[:148]) + 8 * 0x20 + sum(header[156:])

"""The directory of a zip archive held against its members: every byte is one of theirs, and both say the same.

Readers differ in which of the two they believe, so any difference is a finding, and so are bytes that neither names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vetgate.scan.inspection import MAX_MEMBERS, Place
from vetgate.scan.rules import (
    CORRUPT,
    DISAGREEMENT,
    DUPLICATE,
    ENCRYPTED,
    HIDDEN_BYTES,
    HIDDEN_MEMBER,
    LIMIT,
    LINK,
    UNSAFE_PATH,
)
from vetgate.scan.source import BrokenFileError, Part, Source

LOCAL, CENTRAL, END, END_64, LOCATOR, DESCRIPTOR = (
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08",
)  # fmt: skip
LOCAL_LAYOUT = struct.Struct("<4s5H3I2H")
CENTRAL_LAYOUT = struct.Struct("<4s6H3I5H2I")
END_LAYOUT = struct.Struct("<4s4H2IH")
END_64_LAYOUT = struct.Struct("<4sQ2H2I4Q")
LOCATOR_LAYOUT = struct.Struct("<4sIQI")
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF
IS_ENCRYPTED, HAS_DESCRIPTOR, IS_UTF8, IS_STRONG = 1, 8, 0x800, 0x2040
KNOWN_FLAGS = 6 | HAS_DESCRIPTOR | IS_UTF8
# zip64, times, unix owners, and the padding by which torch aligns its storages
ZIP_64, PADDING = 0x0001, 0x4246
KNOWN_EXTRA = {ZIP_64, PADDING, 0x5455, 0x7875, 0x000A}
DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class ZipMember:
    """A member as the directory lists it; `at` is where its packed bytes begin."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header_at: int
    at: int = -1
    mode: int = 0

    @property
    def is_directory(self) -> bool:
        return self.name.endswith("/") and not self.size and not self.packed


@dataclass(frozen=True)
class _End:
    count: int
    size: int
    offset: int
    at: int


def find_end(source: Source, *, exact: bool = True) -> int | None:
    """Where the record stands that ends an archive; None without one.

    Its comment ends with the source, unless that need not be `exact`, as for some readers.
    """
    start = max(0, source.size - FULL_16 - END_LAYOUT.size)
    tail = source.read(start, source.size - start)
    at = len(tail)
    while (at := tail.rfind(END, 0, at)) >= 0:
        if len(tail) - at >= END_LAYOUT.size:
            _, _, _, _, count, size, offset, comment = END_LAYOUT.unpack_from(tail, at)
            ends = at + END_LAYOUT.size + comment == len(tail) or not exact
            if ends and (size + offset <= start + at or FULL_32 in (size, offset) or count == FULL_16):
                return start + at
    return None


def zip_members(source: Source, at: Place) -> list[ZipMember]:
    """The members of an archive, in the order of their bytes; what does not fit is told to `at`, and goes inside."""
    found = find_end(source)
    if found is None and (found := find_end(source, exact=False)) is not None:
        after = found + END_LAYOUT.size
        at.found(HIDDEN_BYTES, f"{source.size - after} bytes after the end, at byte {after}")
        at.inside(f"(bytes {after} to {source.size})", Part(source, after, source.size - after))
        source = Part(source, 0, after)
    if found is None:
        at.found(CORRUPT, "a zip archive without an end")
        return _loose_members(source, 0, source.size, at)
    end, base = _end(source, found, at)
    listed = list(_listed(source, end, at))
    if len({member.name for member in listed}) < len({(m.name, m.header_at) for m in listed}) or len(
        {member.name.casefold() for member in listed}
    ) < len(listed):
        at.found(DUPLICATE, "members of one name, or of names that differ in case only")
    members, here = [], 0
    for member in sorted(listed, key=lambda member: member.header_at):
        _check_name(member, at)
        header_at = member.header_at + base
        if header_at > here:
            members += _between(source, here, header_at, at)
        elif header_at < here:
            at.found(DISAGREEMENT, f"{member.name} begins within the member before it")
        known, here = _located(source, member, header_at, at)
        members.append(known)
    if here < end.offset:
        members += _between(source, here, end.offset, at)
    elif here > end.offset:
        at.found(DISAGREEMENT, "a member reaches into the directory")
    return members


def _end(source: Source, found: int, at: Place) -> tuple[_End, int]:
    _, disk, first, here, count, size, offset, comment = END_LAYOUT.unpack(source.read(found, END_LAYOUT.size))
    if comment and found + END_LAYOUT.size + comment <= source.size:
        at.found(HIDDEN_BYTES, f"a comment of {comment} bytes")
        at.inside("(comment)", Part(source, found + END_LAYOUT.size, comment))
    if disk or first or here != count:
        at.found(CORRUPT, "an archive on several disks")
    directory_end = found
    locator = source.read(found - 20, 20) if found >= 20 else b""
    if locator[:4] == LOCATOR:
        _, _, end_64_at, disks = LOCATOR_LAYOUT.unpack(locator)
        if end_64_at + END_64_LAYOUT.size > found - 20:
            raise BrokenFileError(CORRUPT, "a zip64 record that lies elsewhere")
        record = END_64_LAYOUT.unpack(source.read(end_64_at, END_64_LAYOUT.size))
        if record[0] != END_64 or record[1] != END_64_LAYOUT.size - 12 or disks != 1 or record[4] or record[5]:
            raise BrokenFileError(CORRUPT, "a zip64 record that is none")
        if end_64_at + END_64_LAYOUT.size != found - 20:
            at.found(HIDDEN_BYTES, "bytes between the zip64 record and its locator")
        for narrow, wide in ((count, record[7]), (size, record[8]), (offset, record[9])):
            if narrow not in (wide, FULL_16, FULL_32):
                at.found(DISAGREEMENT, "the two records at the end say two things of the directory")
        count, size, offset, directory_end = record[7], record[8], record[9], end_64_at
    base = directory_end - size - offset
    if size > directory_end or base < 0:
        raise BrokenFileError(CORRUPT, "a directory that reaches over its end")
    if base:
        at.found(DISAGREEMENT, f"the directory says to be {base} bytes before where it is")
    if count > MAX_MEMBERS:
        raise BrokenFileError(LIMIT, f"{count} members")
    return _End(count, size, offset + base, directory_end), base


def _listed(source: Source, end: _End, at: Place) -> Iterator[ZipMember]:
    if end.size > 1 << 26:
        raise BrokenFileError(LIMIT, f"a directory of {end.size} bytes")
    data, here, count = source.read(end.offset, end.size), 0, 0
    while here < len(data):
        if len(data) - here < CENTRAL_LAYOUT.size or data[here : here + 4] != CENTRAL:
            at.found(HIDDEN_BYTES, f"{len(data) - here} bytes in the directory that are no entry")
            return
        fields = CENTRAL_LAYOUT.unpack_from(data, here)
        _, made, _, flags, method, _, _, crc, packed, size, names, extras, comments, disk, _, mode, offset = fields
        here += CENTRAL_LAYOUT.size
        raw, extra = data[here : here + names], data[here + names : here + names + extras]
        here += names + extras + comments
        if here > len(data):
            raise BrokenFileError(CORRUPT, "an entry that reaches out of the directory")
        name = _name(raw, flags)
        if comments or disk:
            at.found(HIDDEN_BYTES, f"a comment of {name}")
        size, packed, offset = _wide(extra, [size, packed, offset], name, at)
        yield ZipMember(name, flags, method, crc, packed, size, offset, mode=mode >> 16 if made >> 8 == 3 else 0)
        count += 1
        if count > MAX_MEMBERS:
            raise BrokenFileError(LIMIT, f"more than {MAX_MEMBERS} members")
    if count != end.count:
        at.found(DISAGREEMENT, f"the directory has {count} entries and says {end.count}")


def _located(source: Source, member: ZipMember, header_at: int, at: Place) -> tuple[ZipMember, int]:
    """The member with the place of its bytes, and where what belongs to it ends."""
    header = LOCAL_LAYOUT.unpack(source.read(header_at, LOCAL_LAYOUT.size))
    signature, _, flags, method, _, _, crc, packed, size, names, extras = header
    if signature != LOCAL:
        raise BrokenFileError(DISAGREEMENT, f"no member where the directory has {member.name}")
    rest = source.read(header_at + LOCAL_LAYOUT.size, names + extras)
    name = _name(rest[:names], flags)
    size, packed = _wide(rest[names:], [size, packed], name, at)[:2]
    here = header_at + LOCAL_LAYOUT.size + names + extras
    later = bool(flags & HAS_DESCRIPTOR)
    says: dict[str, tuple[object, object]] = {
        "name": (name, member.name),
        "flags": (flags, member.flags),
        "method": (method, member.method),
    }
    sizes = {"crc": (crc, member.crc), "packed size": (packed, member.packed), "size": (size, member.size)}
    # they may be left open here, and stand behind the member
    says |= {what: pair for what, pair in sizes.items() if not later or pair[0] not in (0, FULL_32)}
    for what, (one, other) in says.items():
        if one != other:
            at.found(DISAGREEMENT, f"{what} of {member.name}: {one!r} at the member, {other!r} in the directory")
    if (flags | member.flags) & (IS_ENCRYPTED | IS_STRONG):
        at.found(ENCRYPTED, member.name)
    elif (flags | member.flags) & ~KNOWN_FLAGS:
        at.found(CORRUPT, f"flags {flags | member.flags:#06x} of {member.name}")
    known = ZipMember(
        member.name, member.flags, member.method, member.crc, member.packed, member.size, header_at, here, member.mode
    )
    here += member.packed
    return known, here + (_descriptor(source, here, member, at) if later else 0)


def _descriptor(source: Source, at: int, member: ZipMember, place: Place) -> int:
    told = source.read(at, min(24, source.size - at))
    for signature in (DESCRIPTOR, b""):
        for layout in ("<IQQ", "<III"):
            if layout == "<III" and max(member.packed, member.size) > FULL_32:
                continue
            wanted = signature + struct.pack(layout, member.crc, member.packed, member.size)
            if told.startswith(wanted):
                return len(wanted)
    place.found(DISAGREEMENT, f"what follows {member.name} does not say what the directory says of it")
    return 0


def _between(source: Source, start: int, stop: int, at: Place) -> list[ZipMember]:
    if source.read(start, min(4, stop - start)) == LOCAL:
        at.found(HIDDEN_MEMBER, f"at byte {start}")
        return _loose_members(source, start, stop, at)
    at.found(HIDDEN_BYTES, f"{stop - start} bytes at byte {start}")
    at.inside(f"(bytes {start} to {stop})", Part(source, start, stop - start))
    return []


def _loose_members(source: Source, start: int, stop: int, at: Place) -> list[ZipMember]:
    """Members that follow one another without a directory, as far as their headers say how long they are."""
    members: list[ZipMember] = []
    while stop - start >= LOCAL_LAYOUT.size and len(members) < MAX_MEMBERS:
        header = LOCAL_LAYOUT.unpack(source.read(start, LOCAL_LAYOUT.size))
        signature, _, flags, method, _, _, crc, packed, size, names, extras = header
        here = start + LOCAL_LAYOUT.size + names + extras
        if signature != LOCAL or here > stop:
            break
        name = _name(source.read(start + LOCAL_LAYOUT.size, names), flags)
        if flags & HAS_DESCRIPTOR or here + packed > stop:
            # how long it is stands behind it: it is read from its start on as what it may be
            at.inside(f"{name} (without an end)", Part(source, here, stop - here))
            return members
        members.append(ZipMember(name, flags, method, crc, packed, size, start, here))
        start = here + packed
    return members


def _wide(extra: bytes, values: list[int], name: str, at: Place) -> list[int]:
    """Sizes and offsets, from the zip64 field where they are too large for their own."""
    here = 0
    while here < len(extra):
        if len(extra) - here < 4:
            at.found(HIDDEN_BYTES, f"{len(extra) - here} extra bytes of {name}")
            break
        kind, size = struct.unpack_from("<HH", extra, here)
        field = extra[here + 4 : here + 4 + size]
        here += 4 + size
        if len(field) < size or kind not in KNOWN_EXTRA or (kind == PADDING and field.strip(b"Z\x00")):
            at.found(HIDDEN_BYTES, f"an extra field {kind:#06x} of {name}")
        if kind == ZIP_64:
            numbers = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            values = [next(numbers, value) if value == FULL_32 else value for value in values]
            # older writers give the sizes here too where they were not needed
            if any(number not in (*values, 0) for number in numbers):
                at.found(HIDDEN_BYTES, f"numbers in the zip64 field of {name} that stand for nothing")
    return values


def _name(raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8" if flags & IS_UTF8 else "cp437")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _check_name(member: ZipMember, at: Place) -> None:
    unsafe_name(member.name, at)
    kind = member.mode & 0o170000
    if kind not in (0, 0o100000, 0o040000):
        at.found(LINK, f"{member.name} is no plain file")


def unsafe_name(name: str, at: Place) -> None:
    """Tell of a name that leads out of where an archive is unpacked, or that ends early for some readers."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or DRIVE.match(name):
        at.found(UNSAFE_PATH, name)
    elif "\x00" in name or "\\" in name or not name:
        at.found(DISAGREEMENT, f"the name {name!r}, which readers take differently")

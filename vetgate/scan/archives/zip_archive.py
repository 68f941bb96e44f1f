"""The members of a zip archive, unpacked, held against their sums, and inspected one by one."""

from __future__ import annotations

from vetgate.scan.archives.compressed import checked_crc, unpacked_member
from vetgate.scan.archives.zip_directory import ZipMember
from vetgate.scan.inspection import Place
from vetgate.scan.rules import CORRUPT, DISAGREEMENT, UNKNOWN
from vetgate.scan.source import Part, Source

METHODS = {8: "deflate", 12: "bz2"}


def content(source: Source, member: ZipMember, at: Place) -> Source:
    """The bytes of a member, its size and CRC-32 checked; `at` is its own place."""
    if member.method == 0:
        if member.packed != member.size:
            at.found(DISAGREEMENT, f"stored in {member.packed} bytes, and of {member.size}")
        found: Source = Part(source, member.at, min(member.packed, source.size - member.at))
    elif member.method in METHODS:
        found = unpacked_member(source, member.at, member.packed, METHODS[member.method], at)
    else:
        at.found(UNKNOWN, f"packed by method {member.method}")
        return Part(source, member.at, member.packed)
    if found.size != member.size:
        at.found(CORRUPT, f"{found.size} bytes where {member.size} are said")
    at.guarded(lambda: checked_crc(found, member.crc))
    return found


def read_members(source: Source, members: list[ZipMember], at: Place) -> None:
    """Inspect members, each as what its bytes are."""
    for member in members:
        there = at.within(member.name)
        if not member.is_directory:

            def inspect(member: ZipMember = member, there: Place = there) -> None:
                at.inside(member.name, content(source, member, there))

            there.guarded(inspect)

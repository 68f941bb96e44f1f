"""What torch.save writes since 1.6: a zip archive of a pickle and the storages to which its persistent ids lead.

Every storage must be led to and be exactly as long as is said; every other member must be one that torch writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from vetgate.scan.archives.zip_archive import content, read_members
from vetgate.scan.archives.zip_directory import ZipMember
from vetgate.scan.inspection import Place
from vetgate.scan.pickles.allowed import ITEM_SIZES
from vetgate.scan.pickles.nodes import Storage
from vetgate.scan.pickles.streams import probe, read_pickle
from vetgate.scan.rules import (
    CORRUPT,
    EXPORTED_PROGRAM,
    HIDDEN_BYTES,
    POLYGLOT,
    TENSOR_BOUNDS,
    TORCH_SCRIPT,
    UNREFERENCED,
)
from vetgate.scan.source import BrokenFileError, Part, Source

PICKLE = "data.pkl"
# what torch writes beside pickle and storages, and what may stand in it
KNOWN = {
    "version": rb"[0-9]{1,3}\n",
    "byteorder": rb"little",
    ".format_version": rb"[0-9]{1,3}",
    ".storage_alignment": rb"[0-9]{1,6}",
    ".data/serialization_id": rb"[0-9]{1,64}",
}
STORAGE = re.compile(r"data/([0-9]{1,9})")
PROGRAM = ("models/model.json", "archive_format", "serialized_exported_program.json")


@dataclass
class TorchFile:
    """What a torch file holds: the value of its pickle, and of each storage the type and the bytes."""

    value: Any = None
    storages: dict[str, tuple[Storage, Source]] = field(default_factory=dict)
    pickle: Source | None = None


def is_torch(members: list[ZipMember]) -> bool:
    """Whether these are members of a file of torch: its pickle, or a program of torch.export."""
    return any(_below(member.name) in (PICKLE, *PROGRAM) for member in members)


def read_torch_zip(source: Source, members: list[ZipMember], at: Place) -> TorchFile:
    """Inspect a torch file; what it holds, as far as it was understood."""
    held = TorchFile()
    roots = {member.name.partition("/")[0] for member in members}
    names = {_below(member.name) for member in members}
    script = "constants.pkl" in names or any(name.startswith("code/") for name in names)
    if script:
        at.found(TORCH_SCRIPT, next((m.name for m in members if "/code/" in m.name), PICKLE))
    if names & set(PROGRAM):
        at.found(EXPORTED_PROGRAM, next(m.name for m in members if _below(m.name) in PROGRAM))
    if len(roots) > 1 or names & set(PROGRAM) or len(names) < len(members):
        if not names & set(PROGRAM):
            at.found(CORRUPT, f"members of {len(roots)} roots; torch writes one")
        read_members(source, members, at)
        return held
    own = {_below(member.name): member for member in members}
    there = at.within(own[PICKLE].name)
    there.guarded(lambda: _read_pickle(source, own, there, held, script))
    expected = {f"data/{key}": found for key, found in held.storages.items()}
    for name, member in own.items():
        if name != PICKLE and not member.is_directory:
            _read_member(source, name, member, at, expected, script)
    return held


def _below(name: str) -> str:
    return name.partition("/")[2]


def _read_pickle(source: Source, own: dict[str, ZipMember], at: Place, held: TorchFile, script: bool) -> None:
    at.inspection.members += 1
    held.pickle = content(source, own[PICKLE], at)
    pickled = read_pickle(held.pickle, at, script=script)
    held.value = pickled.value
    if pickled.end != held.pickle.size:
        at.found(HIDDEN_BYTES, f"{held.pickle.size - pickled.end} bytes after the pickle")
        at.inside("(rest)", Part(held.pickle, pickled.end, held.pickle.size - pickled.end))
    for key, storage in pickled.storages.items():
        member = own.get(f"data/{key}")
        if member is None:
            if not script:
                at.found(CORRUPT, f"no member for storage {key}")
            continue
        wanted = storage.count * ITEM_SIZES[storage.type]
        if member.size != wanted:
            at.found(TENSOR_BOUNDS, f"storage {key} has {member.size} bytes where {wanted} are said")
        held.storages[key] = (storage, _stored(source, member))


def _stored(source: Source, member: ZipMember) -> Source:
    if member.method or member.packed != member.size:
        raise BrokenFileError(CORRUPT, f"storage {member.name} is packed; torch stores it as it is")
    return Part(source, member.at, member.size)


def _read_member(
    source: Source, name: str, member: ZipMember, at: Place, expected: dict[str, Any], script: bool
) -> None:
    there = at.within(member.name)

    def inspect() -> None:
        found = content(source, member, there)
        if name in expected or (script and STORAGE.fullmatch(name)):
            if probe(found).runs:
                there.found(POLYGLOT, "a storage that is a pickle with calls too")
        elif name in KNOWN:
            if found.size > 64 or not re.fullmatch(KNOWN[name], found.read(0, found.size)):
                there.found(HIDDEN_BYTES, f"{found.size} bytes that are not what torch writes there")
                at.inside(member.name, found)
        elif script and name.endswith("pkl"):
            at.inspection.members += 1
            read_pickle(found, there, script=True)
        else:
            if not script:
                there.found(UNREFERENCED, member.name)
            at.inside(member.name, found)

    there.guarded(inspect)

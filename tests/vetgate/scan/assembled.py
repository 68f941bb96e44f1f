"""Pickles and archives put together byte by byte. Nothing here is ever unpickled; a payload would touch one file."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Payload:
    """What pickles to a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


def touching(marker: Path) -> str:
    """The command of every payload."""
    return f"touch '{marker}'"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def imported(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(module: str, name: str, argument: str) -> bytes:
    """A whole pickle that calls module.name(argument)."""
    return b"\x80\x02" + imported(module, name) + text(argument) + b"\x85R."


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return made.getvalue()


def tarred(members: Mapping[str, bytes], mode: str = "w", links: Mapping[str, str] | None = None) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return made.getvalue()


def torch_zip(data_pkl: bytes, more: Mapping[str, bytes] | None = None) -> bytes:
    """A file as torch.save writes it, with this pickle and these members beside it."""
    members = {"data.pkl": data_pkl, "byteorder": b"little", "version": b"3\n", **(more or {})}
    return zipped({f"archive/{name}": data for name, data in members.items()})


def torch_legacy(held: bytes) -> bytes:
    """A file as torch.save wrote it before 1.6, without storages."""
    numbers = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return numbers + pickle.dumps(system, 2) + held + pickle.dumps([], 2)


def storage_id(key: str = "0", count: str = "K\x04") -> bytes:
    """The opcodes of a persistent id of a storage of 4 float32."""
    return (
        b"(" + text("storage") + imported("torch", "FloatStorage") + text(key) + text("cpu") + count.encode("latin-1")
    ) + b"tQ"


def tensor(shape: bytes = b"K\x04\x85", offset: bytes = b"K\x00") -> bytes:
    """The opcodes that rebuild a tensor of one dimension from that storage."""
    rebuilt = imported("torch._utils", "_rebuild_tensor_v2") + b"(" + storage_id() + offset + shape + b"K\x01\x85"
    return rebuilt + b"\x89" + imported("collections", "OrderedDict") + b")RtR"

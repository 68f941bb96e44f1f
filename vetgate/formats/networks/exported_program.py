"""The weights of a program of torch.export (.pt2) as a state dict: bytes of tensors, and a table of their names.

The program is never loaded. Its graph says nothing here: the network is the one that the submission names, and what is
written is served in place of the file. Every member is still read as what it has to be, and any other is refused.
"""

from __future__ import annotations

import math
import re
from typing import Any

from vetgate.formats.plain_json import read_object
from vetgate.scan.archives.zip_archive import content
from vetgate.scan.archives.zip_directory import ZipMember, zip_members
from vetgate.scan.inspection import Place
from vetgate.scan.pickles.allowed import ITEM_SIZES
from vetgate.scan.pickles.nodes import Mapped, Storage, Tensor
from vetgate.scan.rules import CORRUPT, UNREFERENCED
from vetgate.scan.source import BrokenFileError, Part, Source
from vetgate.scan.torch_zip import TorchFile, read_torch_zip

WEIGHTS, TABLE = "data/weights/", "data/weights/model_weights_config.json"
SAMPLES = "data/sample_inputs/model.pt"
OBJECTS = ("models/model.json", "data/constants/model_constants_config.json")
PLAIN = {
    "archive_format": rb"pt2",
    "archive_version": rb"[0-9]{1,3}",
    ".data/version": rb"[0-9]{1,3}\n",
    "byteorder": rb"little",
    ".data/serialization_id": rb"[0-9]{1,64}",
}
# of torch.export's schema
TYPES = {
    1: "ByteStorage", 2: "CharStorage", 3: "ShortStorage", 4: "IntStorage", 5: "LongStorage", 6: "HalfStorage",
    7: "FloatStorage", 8: "DoubleStorage", 12: "BoolStorage", 13: "BFloat16Storage",
}  # fmt: skip
STRIDED = 7


def is_exported_program(members: list[ZipMember]) -> bool:
    """Whether these are members of such a file; those of earlier versions of torch hold pickles, and are none."""
    return {"archive_format", TABLE} <= {_below(member) for member in members}


def read_exported_program(source: Source, members: list[ZipMember], at: Place) -> TorchFile:
    """Its weights by name, as a pickle of them would be read; raises BrokenFileError for what is no part of one."""
    own = {_below(member): member for member in members if not member.is_directory}
    if len({member.name.partition("/")[0] for member in members}) > 1 or len(own) < len(members):
        raise BrokenFileError(CORRUPT, "members of several roots, or of one name; torch writes neither")
    read = {name: content(source, member, at.within(member.name)) for name, member in own.items()}
    for name, found in read.items():
        _check_member(name, found, at.within(own[name].name))
    held, pairs, used = TorchFile(), [], set()
    for name, about in read_object(_whole(read[TABLE]), TABLE)["config"].items():
        file = f"{WEIGHTS}{about['path_name']}"
        if file not in read or file == TABLE or own[file].method:
            raise BrokenFileError(CORRUPT, f"no plain bytes in {file} for {name}")
        tensor = _tensor(name, about, read[file])
        used.add(file)
        held.storages[tensor.storage.key] = (tensor.storage, Part(source, own[file].at, own[file].size))
        pairs.append((name, tensor))
    if unused := {name for name in own if name.startswith(WEIGHTS) and name != TABLE} - used:
        raise BrokenFileError(UNREFERENCED, ", ".join(sorted(unused)[:5]))
    held.value = Mapped(pairs)
    return held


def _check_member(name: str, found: Source, at: Place) -> None:
    if name in PLAIN:
        if found.size > 64 or not re.fullmatch(PLAIN[name], found.read(0, found.size)):
            raise BrokenFileError(CORRUPT, f"{found.size} bytes in {name} that are not what torch writes there")
    elif name in OBJECTS:
        read_object(_whole(found), name)
    elif name == SAMPLES:
        read_torch_zip(found, zip_members(found, at), at)
    elif not name.startswith(WEIGHTS):
        raise BrokenFileError(UNREFERENCED, f"{name}, which is no weight; export the network without constants")


def _tensor(name: str, about: dict[str, Any], found: Source) -> Tensor:
    meta = about["tensor_meta"]
    shape, strides = (tuple(size["as_int"] for size in meta[key]) for key in ("sizes", "strides"))
    plain = all(type(n) is int and n >= 0 for n in (*shape, *strides))
    dense = plain and strides == tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    kind = TYPES.get(meta["dtype"])
    count = math.prod(shape)
    if (
        not dense
        or kind is None
        or about["use_pickle"]
        or meta["layout"] != STRIDED
        or meta["storage_offset"] != {"as_int": 0}
        or count * ITEM_SIZES[kind] != found.size
    ):
        raise BrokenFileError(CORRUPT, f"{name} is no dense tensor of real numbers that its {found.size} bytes hold")
    return Tensor(Storage(about["path_name"], kind, count), 0, shape, strides)


def _whole(found: Source) -> bytes:
    return found.read(0, found.size)


def _below(member: ZipMember) -> str:
    return member.name.partition("/")[2]

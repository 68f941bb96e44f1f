"""What torch.save wrote before 1.6: pickles one after another, then the storages, each as long as it says."""

from __future__ import annotations

from typing import Any

from vetgate.scan.inspection import Place
from vetgate.scan.pickles.allowed import ITEM_SIZES
from vetgate.scan.pickles.nodes import Listed
from vetgate.scan.pickles.streams import Pickled, probe, read_pickle
from vetgate.scan.rules import CORRUPT, HIDDEN_BYTES, POLYGLOT, TENSOR_BOUNDS
from vetgate.scan.source import BrokenFileError, Part, Source
from vetgate.scan.torch_zip import TorchFile

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = 1001


def is_torch_legacy(source: Source) -> bool:
    """Whether bytes begin with the number that marks the format."""
    return source.size > len(MAGIC) and source.read(0, len(MAGIC)) == MAGIC


def read_torch_legacy(source: Source, at: Place) -> TorchFile:
    """Inspect a file of the old format; what it holds, as far as it was understood."""
    version = read_pickle(source, at, len(MAGIC))
    if version.value != PROTOCOL:
        raise BrokenFileError(CORRUPT, f"version {version.value!r:.40} of the format")
    # byte order and sizes of types: which need nothing but text and numbers
    system = read_pickle(source, at, version.end)
    if dict(_pairs(system)).get("little_endian") is not True:
        raise BrokenFileError(CORRUPT, "weights in another byte order")
    held = read_pickle(source, at, system.end)
    listed = read_pickle(source, at, held.end)
    keys = listed.value.items if isinstance(listed.value, Listed) else [None]
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(held.storages):
        at.found(CORRUPT, "the storages that follow are not those of the pickle")
    torch_file = TorchFile(held.value, {}, source)
    here = listed.end
    for key in keys:
        if not isinstance(key, str) or (storage := held.storages.get(key)) is None:
            break
        count = int.from_bytes(source.read(here, 8), "little")
        if count != storage.count:
            at.found(TENSOR_BOUNDS, f"storage {key} has {count} elements where {storage.count} are said")
        part = Part(source, here + 8, count * ITEM_SIZES[storage.type])
        if probe(part).runs:
            at.found(POLYGLOT, f"storage {key} is a pickle with calls too")
        torch_file.storages[key] = (storage, part)
        here += 8 + part.size
    if here < source.size:
        at.found(HIDDEN_BYTES, f"{source.size - here} bytes after the last storage")
        at.inside(f"(bytes {here} to {source.size})", Part(source, here, source.size - here))
    return torch_file


def _pairs(pickled: Pickled) -> list[tuple[Any, Any]]:
    return [pair for pair in getattr(pickled.value, "pairs", []) if isinstance(pair[0], str)]

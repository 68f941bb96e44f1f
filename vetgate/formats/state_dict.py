"""The tensors of a file of torch.save, of either of its formats, or of torch.export, with nothing unpickled.

What the file holds is read by `vetgate.scan`; whatever a scan of it would tell of, this refuses.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.networks.exported_program import is_exported_program, read_exported_program
from vetgate.scan.archives.zip_directory import LOCAL, zip_members
from vetgate.scan.inspection import Inspection, Place
from vetgate.scan.pickles.nodes import Mapped, Opaque, Tensor
from vetgate.scan.rules import HIDDEN_BYTES, RULES
from vetgate.scan.source import BrokenFileError, InMemory, Part, Source
from vetgate.scan.torch_legacy import is_torch_legacy, read_torch_legacy
from vetgate.scan.torch_zip import TorchFile, is_torch, read_torch_zip

Array = np.ndarray[Any, np.dtype[Any]]
# where a checkpoint keeps the weights
WITHIN = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")
BFLOAT16 = "BFloat16Storage"
DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", BFLOAT16: "<u2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1", "ByteStorage": "|u1", "BoolStorage": "|b1",
}  # fmt: skip
MAX_RANK = 8
# weights may be shared, and may not make much of little
MAX_EXPANSION = 2
ADVICE = "save it again with torch.save(model.state_dict(), FILE)"


def read_state_dict(data: bytes) -> dict[str, Array]:
    """Name to array of a whole .pt, .pth, .bin or .pt2 file, in C order; bfloat16 becomes float32, other types stay.

    The weights may stand in the file itself or under a name such as `state_dict` or `model`, with settings beside them.
    Arrays share memory with `data` where they can, and cannot be written to then. Raises NotUnderstood for anything
    that is no plain state dict: code, other objects, bytes that belong to nothing, tensors out of their storage.
    """
    inspection = Inspection("state dict", _not_inspected, len(data))
    held: list[TorchFile] = []
    Place(inspection).guarded(lambda: held.extend(_held(data, Place(inspection))))
    for finding in inspection.findings:
        rule, where = RULES[finding.rule], finding.member or "the file"
        raise NotUnderstood(
            f"expected a state dict of tensors only, got {rule.name} ({finding.rule}) in {where}: {finding.evidence}; "
            f"{rule.help}"
        )
    if not held:
        raise NotUnderstood(f"expected a file of torch.save, got something else; {ADVICE}")
    arrays = {name: _array(name, tensor, held[0], data) for name, tensor in _tensors(held[0].value).items()}
    if sum(array.nbytes for array in arrays.values()) > MAX_EXPANSION * len(data) + (1 << 20):
        raise NotUnderstood(f"expected tensors of about {len(data)} bytes, got far more of shared storages; {ADVICE}")
    return arrays


def _held(data: bytes, at: Place) -> list[TorchFile]:
    source = InMemory(data)
    if is_torch_legacy(source):
        return [read_torch_legacy(source, at)]
    members = zip_members(source, at) if data.startswith(LOCAL) else []
    if is_exported_program(members):
        return [read_exported_program(source, members, at)]
    return [read_torch_zip(source, members, at)] if is_torch(members) else []


def _not_inspected(source: Source, at: Place) -> None:
    # what belongs to a state dict was read before
    raise BrokenFileError(HIDDEN_BYTES, f"{source.size} bytes that are no part of a state dict")


def _tensors(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapped):
        raise NotUnderstood(f"expected names with tensors, got something else; {ADVICE}")
    fields = {key: inner for key, inner in value.pairs if isinstance(key, str)}
    # one number beside the weights, such as the best accuracy so far, is a setting
    weights = any(isinstance(inner, Tensor) and math.prod(inner.shape) > 1 for inner in fields.values())
    inside = {} if weights else {key: tensors for key in WITHIN if (tensors := _direct(fields.get(key)))}
    if len(inside) > 1:
        raise NotUnderstood(f"expected one state dict in the file, got {list(inside)}; {ADVICE}")
    found = next(iter(inside.values()), None) or _direct(value)
    if not found:
        raise NotUnderstood(
            f"expected names with tensors, or these under one of {', '.join(WITHIN)}, got {str(list(fields))[:200]}; "
            f"{ADVICE}"
        )
    return found


def _direct(value: Any) -> dict[str, Tensor]:
    """The tensors that stand in a dictionary itself."""
    if not isinstance(value, Mapped):
        return {}
    tensors = [(key, inner) for key, inner in value.pairs if isinstance(inner, Tensor)]
    names = [key for key, _ in tensors]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise NotUnderstood(f"expected a name for each tensor, given once, got others; {ADVICE}")
    nested = [key for key, inner in value.pairs if isinstance(inner, Opaque) or (tensors and _direct(inner))]
    if nested:
        raise NotUnderstood(f"expected tensors with plain settings beside them, got more in {nested[:5]!r}; {ADVICE}")
    return dict(tensors)


def _array(name: str, tensor: Tensor, held: TorchFile, data: bytes) -> Array:
    storage = tensor.storage
    dtype = DTYPES.get(storage.type)
    if dtype is None or len(tensor.shape) > MAX_RANK:
        raise NotUnderstood(f"expected real numbers in at most {MAX_RANK} dimensions in {name!r}, got {storage.type}")
    if math.prod(tensor.shape) > storage.count:
        raise NotUnderstood(f"expected {name!r} as long as its storage at most, got an expanded one; {ADVICE}")
    part = held.storages[storage.key][1]
    assert isinstance(part, Part)
    whole = np.frombuffer(data, dtype, storage.count, part.start)
    steps = [stride * whole.itemsize for stride in tensor.strides]
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, np.float32 if storage.type == BFLOAT16 else dtype)
    found: Array = np.lib.stride_tricks.as_strided(whole[tensor.offset :], tensor.shape, steps, writeable=False)
    if storage.type == "BoolStorage" and bool((found.view(np.uint8) > 1).any()):
        raise NotUnderstood(f"expected 0 and 1 in {name!r}, got other bytes; {ADVICE}")
    if storage.type == BFLOAT16:
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found if found.flags.c_contiguous else np.ascontiguousarray(found)

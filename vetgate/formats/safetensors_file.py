"""The bytes of a safetensors file: a small header that must describe every byte of the data exactly once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vetgate.errors import NotUnderstood
from vetgate.formats.plain_json import parse

MAX_HEADER = 1 << 20
MAX_RANK = 8
ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
ADVICE = "save the state dict with safetensors.torch.save_file"


@dataclass(frozen=True)
class TensorEntry:
    """What the header says of one tensor; `start` and `stop` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def inspect_safetensors(data: bytes) -> dict[str, TensorEntry]:
    """The tensors that a whole file holds; raises NotUnderstood unless header and data fit each other exactly."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 10 or size > len(data) - 8 or size > MAX_HEADER:
        raise NotUnderstood(
            f"expected a safetensors header of at most {MAX_HEADER} bytes within the file, got {size} bytes in a "
            f"file of {len(data)}; {ADVICE}"
        )
    return tensors_of(data[8 : 8 + size], len(data) - 8 - size)


def tensors_of(header: bytes, data_size: int, item_sizes: Mapping[str, int] = ITEM_SIZES) -> dict[str, TensorEntry]:
    """The tensors that a header describes; raises NotUnderstood unless they cover `data_size` bytes exactly.

    Only types of `item_sizes`, which holds the bytes of an element of each, are taken.
    """
    given = _parsed(header)
    entries = sorted((_entry(name, of, item_sizes) for name, of in given.items()), key=lambda e: (e.start, e.stop))
    at = 0
    for entry in entries:
        if entry.start != at:
            raise NotUnderstood(f"expected tensor {entry.name!r} to start at byte {at}, got {entry.start}; {ADVICE}")
        at = entry.stop
    if at != data_size:
        raise NotUnderstood(
            f"expected {at} bytes of weights as the header says, got {data_size} (truncated or altered); {ADVICE}"
        )
    return {entry.name: entry for entry in entries}


def _parsed(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise NotUnderstood(f"expected a safetensors header that starts with a brace, got {text[:1]!r}; {ADVICE}")
    try:
        header: dict[str, Any] = parse(text.decode())
    except (ValueError, RecursionError) as error:
        raise NotUnderstood(
            f"expected a JSON header, got {type(error).__name__} ({str(error)[:200]}); {ADVICE}"
        ) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise NotUnderstood(f"expected metadata of texts in the header, got something else; {ADVICE}")
    if not header:
        raise NotUnderstood(f"expected weights, got a safetensors file without a tensor; {ADVICE}")
    return header


def _entry(name: str, given: Any, item_sizes: Mapping[str, int]) -> TensorEntry:
    if not isinstance(given, dict) or set(given) != {"dtype", "shape", "data_offsets"}:
        raise NotUnderstood(f"expected dtype, shape and data_offsets for tensor {name[:80]!r}; {ADVICE}")
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(dtype, str) or dtype not in item_sizes:
        raise NotUnderstood(
            f"expected {', '.join(item_sizes)} for tensor {name[:80]!r}, got {str(dtype)[:20]!r}; convert the weights"
        )
    if not _sizes(shape) or len(shape) > MAX_RANK or not _sizes(offsets) or len(offsets) != 2:
        raise NotUnderstood(f"expected whole sizes and two offsets for tensor {name[:80]!r}, got others; {ADVICE}")
    size = math.prod(shape) * item_sizes[dtype]
    if offsets[1] - offsets[0] != size:
        raise NotUnderstood(
            f"expected {size} bytes for tensor {name[:80]!r} of shape {shape}, got {offsets[1] - offsets[0]}; {ADVICE}"
        )
    return TensorEntry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)

"""safetensors: a header of JSON whose tensors must cover the data exactly; every type of the format is read."""

from __future__ import annotations

from vetgate.errors import NotUnderstood
from vetgate.formats.safetensors_file import tensors_of
from vetgate.scan.inspection import Place
from vetgate.scan.rules import CORRUPT
from vetgate.scan.source import BrokenFileError, Source
from vetgate.scan.texts import check_text

MAX_HEADER = 32 << 20
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip


def is_safetensors(source: Source) -> bool:
    """Whether bytes begin with the length of a header within them, and a brace."""
    if source.size < 10:
        return False
    head = source.read(0, 9)
    size = int.from_bytes(head[:8], "little")
    return head[8:] == b"{" and 2 <= size <= min(source.size - 8, MAX_HEADER)


def read_safetensors(source: Source, at: Place) -> None:
    """Inspect a safetensors file."""
    size = int.from_bytes(source.read(0, 8), "little")
    header = source.read(8, size)
    try:
        tensors_of(header, source.size - 8 - size, ITEM_SIZES)
    except NotUnderstood as error:
        raise BrokenFileError(CORRUPT, str(error)) from error
    # metadata is text of strangers that programs read
    check_text(header.decode(), at)

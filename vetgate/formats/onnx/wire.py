"""The bytes of an ONNX file, walked before any parser sees them.

Every field must stand in the table of `onnx_fields`; every length must fit in what is left; a tensor's data must be
exactly as long as its shape says. What is not in the table is refused: subgraphs, functions, sparse
tensors, sequences, training graphs, device placement. The messages do not nest into themselves, so depth is bounded.

The numbers of large tensors stay where they are: what a parser is given has, in the place of each `raw_data`, where in
the file that lies. So the weights, nearly all of a file, are read once and by nobody else.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.manifest import Bytes
from vetgate.formats.onnx.fields import REFUSED, TABLE, Field
from vetgate.formats.onnx.table import OPSETS

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
PLACE = struct.Struct("<QQ")
MAX_FIELDS = 300_000
MAX_TEXT = 1 << 20
MAX_RANK = 16
# float32, uint8, int8, uint16, int16, int32, int64, bool, float16, float64, bfloat16
ITEM_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}
ADVICE = (
    f"hand in one ONNX graph: opset {OPSETS.start} to {OPSETS.stop - 1}, standard operators only, weights inside the "
    "file or in one beside it"
)


@dataclass
class Message:
    """A walked message: what the checks that follow it need to know, and its bytes where they were `shortened`."""

    ints: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # elements of packed numbers, bytes of text and raw data
    name: str = ""
    shortened: bytes | None = None


def inspect_wire(data: Bytes) -> bytes:
    """Walk the bytes of a whole ONNX file; raises NotUnderstood at the first one that is not understood.

    Gives the same file with the places of its raw data instead of those.
    """
    walker = _Walker(data)
    found = walker.message("Model", 0, len(data))
    if "graph" not in found.sizes or "ir_version" not in found.ints:
        raise NotUnderstood(f"expected an ONNX model, got bytes without a graph or version; {ADVICE}")
    return bytes(data) if found.shortened is None else found.shortened


def place_of(raw_data: bytes) -> tuple[int, int]:
    """Where in the file the raw data of a tensor starts and stops, by what stands for them."""
    start, stop = PLACE.unpack(raw_data)
    return start, stop


class _Walker:
    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.array = np.frombuffer(data, np.uint8)
        self.fields = 0

    def message(self, kind: str, start: int, end: int) -> Message:
        found = Message()
        parts: list[Bytes] = []
        copied = start
        for begin, number, wire, value, stop in self._fields(kind, start, end):
            entry = TABLE[kind].get(number)
            if entry is None:
                raise _refused(kind, number, start)
            name, spec = entry
            if not spec.many and (name in found.ints or name in found.sizes):
                raise NotUnderstood(f"expected one {name} in {kind} at byte {start}, got two; {ADVICE}")
            instead = self._value(found, name, spec, wire, value, stop)
            if instead is not None:
                parts += [self.data[copied:begin], varint(number << 3 | BYTES), varint(len(instead)), instead]
                copied = stop
        if parts:
            found.shortened = b"".join([*parts, self.data[copied:end]])
        after = AFTER.get(kind)
        if after is not None:
            after(found, start)
        return found

    def _fields(self, kind: str, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        # yields where a field begins, its number and wire type, the value of a varint or the start of the bytes, and
        # where they stop
        at = start
        while at < end:
            begin = at
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise NotUnderstood(f"expected at most {MAX_FIELDS} fields, got more; store tensors as raw data")
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                value, at = self._varint(at, end)
                yield begin, number, wire, value, at
                continue
            if wire == BYTES:
                length, at = self._varint(at, end)
            elif wire in (FIXED32, FIXED64):
                length = 4 if wire == FIXED32 else 8
            else:
                raise NotUnderstood(f"expected a field of {kind}, got wire type {wire} at byte {at}; {ADVICE}")
            if length > end - at:
                raise NotUnderstood(
                    f"expected {length} bytes at byte {at}, got {end - at}: the file is truncated or altered"
                )
            yield begin, number, wire, at, at + length
            at += length

    def _value(self, found: Message, name: str, spec: Field, wire: int, value: int, stop: int) -> bytes | None:
        # gives what stands for the bytes of the field, if not they themselves
        kind = spec.kind
        if kind in ("int", "ints") and wire == VARINT:
            found.ints.setdefault(name, []).append(_signed(value))
        elif (kind in ("float", "floats") and wire == FIXED32) or (kind == "doubles" and wire == FIXED64):
            found.sizes[name] = found.sizes.get(name, 0) + 1
        elif wire != BYTES or kind in ("int", "float"):
            raise NotUnderstood(f"expected {name} as {kind} at byte {value}, got wire type {wire}; {ADVICE}")
        elif kind == "ints":
            self._packed_ints(found, name, value, stop)
        elif kind in ("floats", "doubles"):
            size = 4 if kind == "floats" else 8
            if (stop - value) % size:
                raise NotUnderstood(f"expected whole numbers of {size} bytes in {name}, got {stop - value}; {ADVICE}")
            found.sizes[name] = found.sizes.get(name, 0) + (stop - value) // size
        elif kind == "text":
            text = self._text(name, value, stop)
            found.sizes[name] = stop - value
            if name == "name":
                found.name = text
        elif kind == "bytes":
            found.sizes[name] = stop - value
            return PLACE.pack(value, stop) if name == "raw_data" else None
        else:
            found.sizes[name] = found.sizes.get(name, 0) + 1
            return self.message(kind, value, stop).shortened
        return None

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise NotUnderstood(f"expected a number at byte {at}, got the end: the file is truncated or altered")
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value >= 1 << 64:
                    break
                return value, at
        raise NotUnderstood(f"expected a number of at most 64 bits at byte {at}, got a longer one; {ADVICE}")

    def _packed_ints(self, found: Message, name: str, start: int, stop: int) -> None:
        if name != "dims":
            # counted, not decoded: only a shape's values matter here
            ends = np.flatnonzero(self.array[start:stop] < 128)
            lengths = np.diff(ends, prepend=-1)
            if stop > start and (len(ends) == 0 or ends[-1] != stop - start - 1 or int(lengths.max()) > 10):
                raise NotUnderstood(f"expected whole numbers in {name} at byte {start}, got a broken one; {ADVICE}")
            found.sizes[name] = found.sizes.get(name, 0) + len(ends)
            return
        at = start
        while at < stop:
            value, at = self._varint(at, stop)
            found.ints.setdefault(name, []).append(_signed(value))

    def _text(self, name: str, start: int, stop: int) -> str:
        if stop - start > MAX_TEXT:
            raise NotUnderstood(f"expected at most {MAX_TEXT} bytes of text in {name}, got {stop - start}; shorten it")
        try:
            return str(self.data[start:stop], "utf-8")
        except UnicodeDecodeError as error:
            raise NotUnderstood(f"expected UTF-8 text in {name} at byte {start}, got other bytes; {ADVICE}") from error


def varint(value: int) -> bytes:
    """A whole number from zero on as the format has it: seven bits a byte, the lowest first."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _refused(kind: str, number: int, start: int) -> NotUnderstood:
    reason = REFUSED.get((kind, number))
    if reason is None:
        return NotUnderstood(f"expected a known field of {kind} at byte {start}, got field {number}; {ADVICE}")
    return NotUnderstood(f"expected a data-only graph, got {reason}; {ADVICE}")


def _check_tensor(found: Message, start: int) -> None:
    label = f"tensor {found.name!r}" if found.name else f"the tensor at byte {start}"
    dims = found.ints.get("dims", [])
    kind = found.ints.get("data_type", [0])[0]
    if kind not in ITEM_SIZES:
        raise NotUnderstood(
            f"expected {label} as floating-point or whole numbers, got ONNX data type {kind}; convert it"
        )
    if len(dims) > MAX_RANK or any(d < 0 for d in dims):
        raise NotUnderstood(f"expected a shape of at most {MAX_RANK} sizes >= 0 for {label}, got {dims[:MAX_RANK]}")
    counted = {name: found.sizes.get(name, 0) + len(found.ints.get(name, [])) for name in DATA_FIELDS.values()}
    location = found.ints.get("data_location", [0])[0]
    if location not in (0, 1) or (location == 1) != ("external_data" in found.sizes):
        raise NotUnderstood(f"expected {label} inside the file or in one beside it, got neither; save the model again")
    if location == 1:
        if any(counted.values()) or "raw_data" in found.sizes:
            raise NotUnderstood(f"expected {label} inside the file or beside it, got both; save the model again")
        return  # where its bytes lie is checked with the file that holds them
    typed = counted.pop(DATA_FIELDS[kind])
    elements = math.prod(dims)
    if any(counted.values()) or (typed and "raw_data" in found.sizes):
        raise NotUnderstood(f"expected {label} to hold its numbers once, got two kinds of data; export it again")
    held = found.sizes["raw_data"] if "raw_data" in found.sizes else typed * ITEM_SIZES[kind]
    if held != elements * ITEM_SIZES[kind]:
        raise NotUnderstood(
            f"expected {elements * ITEM_SIZES[kind]} bytes for {label} of shape {dims}, got {held}; export it again"
        )


def _check_model(found: Message, start: int) -> None:
    version = found.ints.get("ir_version", [0])[0]
    if not 3 <= version <= 14:
        raise NotUnderstood(f"expected ONNX format version 3 to 14, got {version}; {ADVICE}")


def _check_node(found: Message, start: int) -> None:
    if found.sizes.get("overload", 0):
        raise NotUnderstood(
            f"expected a standard operator, got a function's overload at byte {start}; inline functions"
        )


def _check_dimension(found: Message, start: int) -> None:
    if "dim_value" in found.ints and "dim_param" in found.sizes:
        raise NotUnderstood(f"expected a size or a name for the dimension at byte {start}, got both; export it again")


DATA_FIELDS = {1: "float_data", 7: "int64_data", 11: "double_data"} | dict.fromkeys(
    (2, 3, 4, 5, 6, 9, 10, 16), "int32_data"
)
AFTER: dict[str, Callable[[Message, int], None]] = {
    "Model": _check_model,
    "Tensor": _check_tensor,
    "Node": _check_node,
    "Dimension": _check_dimension,
}

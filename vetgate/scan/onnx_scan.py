"""ONNX as it lies in the file: every field of every message known and within its bounds, and no tensor read.

Source    The messages of onnx.proto (IR version 14).
"""

from __future__ import annotations

import math
import re

from vetgate.scan.archives.zip_directory import unsafe_name
from vetgate.scan.inspection import External, Place
from vetgate.scan.rules import CONTROL_FLOW, CORRUPT, EXTERNAL_DATA, FOREIGN_OPERATOR, LIMIT
from vetgate.scan.source import BrokenFileError, Cursor, Source

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
MAX_FIELDS = 1_000_000
MAX_DEPTH = 40
MAX_TEXT = 1 << 20
INT, FLOAT, TEXT, RAW, INTS, FLOATS, DOUBLES = "int", "float", "text", "raw", "ints", "floats", "doubles"
MESSAGES: dict[str, dict[int, str]] = {
    "Model": {1: INT, 2: TEXT, 3: TEXT, 4: TEXT, 5: INT, 6: TEXT, 7: "Graph", 8: "OperatorSet", 14: "Pair",
              20: "Training", 25: "Function"},
    "OperatorSet": {1: TEXT, 2: INT},
    "Pair": {1: TEXT, 2: TEXT},
    "Training": {1: "Graph", 2: "Graph", 3: "Pair", 4: "Pair"},
    "Function": {1: TEXT, 4: TEXT, 5: TEXT, 6: TEXT, 7: "Node", 8: TEXT, 9: "OperatorSet", 10: TEXT, 11: "Attribute",
                 12: "ValueInfo", 13: TEXT, 14: "Pair"},
    "Graph": {1: "Node", 2: TEXT, 5: "Tensor", 10: TEXT, 11: "ValueInfo", 12: "ValueInfo", 13: "ValueInfo",
              14: "Annotation", 15: "SparseTensor", 16: "Pair"},
    "Annotation": {1: TEXT, 2: "Pair"},
    "Node": {1: TEXT, 2: TEXT, 3: TEXT, 4: TEXT, 5: "Attribute", 6: TEXT, 7: TEXT, 8: TEXT, 9: "Pair"},
    "Attribute": {1: TEXT, 2: FLOAT, 3: INT, 4: RAW, 5: "Tensor", 6: "Graph", 7: FLOATS, 8: INTS, 9: RAW, 10: "Tensor",
                  11: "Graph", 13: TEXT, 14: "Type", 15: "Type", 20: INT, 21: TEXT, 22: "SparseTensor",
                  23: "SparseTensor"},
    "Tensor": {1: INTS, 2: INT, 3: "Segment", 4: FLOATS, 5: INTS, 6: RAW, 7: INTS, 8: TEXT, 9: RAW, 10: DOUBLES,
               11: INTS, 12: TEXT, 13: "Pair", 14: INT, 16: "Pair"},
    "Segment": {1: INT, 2: INT},
    "SparseTensor": {1: "Tensor", 2: "Tensor", 3: INTS},
    "ValueInfo": {1: TEXT, 2: "Type", 3: TEXT, 4: "Pair"},
    "Type": {1: "TensorType", 4: "Sequence", 5: "Map", 6: TEXT, 7: "Opaque", 8: "TensorType", 9: "Sequence"},
    "TensorType": {1: INT, 2: "Shape"},
    "Sequence": {1: "Type"},
    "Map": {1: INT, 2: "Type"},
    "Opaque": {1: TEXT, 2: TEXT},
    "Shape": {1: "Dimension"},
    "Dimension": {1: INT, 2: TEXT, 3: TEXT},
}  # fmt: skip
# bits of an element, by the number of its type
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
        17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8}  # fmt: skip
# fields that may stand there more than once; where another does, readers differ in what they make of it
REPEATED: dict[str, set[int]] = {
    "Model": {8, 14, 20, 25}, "Training": {3, 4}, "Function": {4, 5, 6, 7, 9, 11, 12, 14}, "Annotation": {2},
    "Graph": {1, 5, 11, 12, 13, 14, 15, 16}, "Node": {1, 2, 5, 9}, "Attribute": {7, 8, 9, 10, 11, 15, 23},
    "Tensor": {1, 4, 5, 6, 7, 10, 11, 13, 16}, "SparseTensor": {3}, "ValueInfo": {4}, "Shape": {1},
}  # fmt: skip
KEPT = {("Node", 7), ("Function", 10), ("Pair", 1), ("Pair", 2)}
# fields in which a tensor holds its values itself
DATA = {4, 5, 6, 7, 9, 10, 11}
# a file in the directory of the model whose name says that it holds numbers, so that no loader takes it for a program;
# and a place in it
DATA_NAME, NUMBER = re.compile(r"\w[\w.-]{0,200}[._]data(_\d{1,3})?", re.ASCII), re.compile(r"0|[1-9][0-9]{0,14}")
# onnxruntime brings these
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft", "com.microsoft.nchwc"}


def may_be_onnx(source: Source) -> bool:
    """Whether bytes begin as a model does: with its version, or another of its fields."""
    key = source.read(0, 1)[0] if source.size > 8 else 0
    kind = MESSAGES["Model"].get(key >> 3)
    return kind is not None and key & 7 == (VARINT if kind == INT else BYTES)


def read_onnx(source: Source, at: Place) -> None:
    """Inspect an ONNX file; raises BrokenFileError where it is not understood."""
    reader = _Reader(source, at)
    fields = reader.message("Model", source.size, 0)
    if not {1, 7, 8} <= set(fields):
        raise BrokenFileError(CORRUPT, "an ONNX file without a version, a graph or the operators it is for")
    if not at.member:
        at.inspection.external = reader.external
    for domain in sorted(reader.domains - DOMAINS - reader.functions)[:20]:
        at.found(FOREIGN_OPERATOR, f"domain {domain}")


def is_message(source: Source) -> bool:
    """Whether bytes can be read to their end as a protobuf message of any fields, as lenient readers do."""
    cursor = Cursor(source)
    try:
        for _ in range(MAX_FIELDS):
            if cursor.at == source.size:
                return True
            key = varint(cursor)
            if key >> 3 == 0 or key & 7 > FIXED_32:
                return False
            # groups, 3 and 4, are marks around fields
            size = {FIXED_64: 8, FIXED_32: 4}.get(key & 7, 0)
            if key & 7 in (VARINT, BYTES):
                number = varint(cursor)
                size = number if key & 7 == BYTES else 0
            if size < MAX_TEXT:
                cursor.take(size)
            else:
                cursor.skip(size)
    except BrokenFileError:
        return False
    return True


def varint(cursor: Cursor) -> int:
    """The next number of a message."""
    value = 0
    for shift in range(0, 70, 7):
        byte = cursor.take(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise BrokenFileError(CORRUPT, f"a number of more than 64 bits at byte {cursor.at}")


class _Reader:
    def __init__(self, source: Source, at: Place) -> None:
        self.cursor, self.at, self.fields = Cursor(source), at, 0
        self.domains: set[str] = set()
        self.functions: set[str] = set()
        self.located: set[str] = set()
        # where in which file beside it tensors lie, as long as every one of them says so plainly
        self.external: External | None = {}

    def message(self, kind: str, end: int, depth: int) -> dict[int, list[object]]:
        """The fields of a message up to byte `end`: of numbers and kept texts the values, of others their sizes."""
        if depth > MAX_DEPTH:
            raise BrokenFileError(LIMIT, "messages nested too deep")
        known, found = MESSAGES[kind], dict[int, list[object]]()
        cursor = self.cursor
        while cursor.at < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise BrokenFileError(LIMIT, f"more than {MAX_FIELDS} fields")
            begin = cursor.at
            key = varint(self.cursor)
            number, wire = key >> 3, key & 7
            if (expected := known.get(number)) is None:
                raise BrokenFileError(CORRUPT, f"no field {number} in {kind} at byte {begin}")
            value = self._value(kind, number, expected, wire, end, depth)
            if number in found and number not in REPEATED.get(kind, ()):
                raise BrokenFileError(CORRUPT, f"field {number} of {kind} is given twice, at byte {begin}")
            found.setdefault(number, []).append(value)
        if cursor.at != end:
            raise BrokenFileError(CORRUPT, f"a {kind} that reaches over its end at byte {end}")
        self._check(kind, found)
        return found

    def _value(self, kind: str, number: int, expected: str, wire: int, end: int, depth: int) -> object:
        if wire == VARINT and expected in (INT, INTS):
            return varint(self.cursor)
        if wire == FIXED_32 and expected in (FLOAT, FLOATS):
            return self.cursor.take(4)
        if wire == FIXED_64 and expected == DOUBLES:
            return self.cursor.take(8)
        if wire != BYTES or expected in (INT, FLOAT):
            raise BrokenFileError(CORRUPT, f"wire type {wire} for a field of {kind} at byte {self.cursor.at}")
        size = varint(self.cursor)
        stop = self.cursor.at + size
        if stop > end:
            raise BrokenFileError(CORRUPT, f"a field of {size} bytes over the end of {kind} at byte {self.cursor.at}")
        if expected in MESSAGES:
            if expected == "Graph" and depth:
                self.at.found(CONTROL_FLOW, f"a graph in a {kind.lower()} at byte {self.cursor.at}")
            inner = self.message(expected, stop, depth + 1)
            return inner if (kind, number) == ("Tensor", 13) else size
        return self._bytes(kind, number, expected, size)

    def _bytes(self, kind: str, number: int, expected: str, size: int) -> object:
        if expected == TEXT:
            if size > MAX_TEXT:
                raise BrokenFileError(LIMIT, f"a text of {size} bytes")
            try:
                text = self.cursor.take(size).decode()
            except UnicodeDecodeError as error:
                raise BrokenFileError(CORRUPT, f"text that is no UTF-8 in {kind}") from error
            return text if (kind, number) in KEPT else size
        if (expected == FLOATS and size % 4) or (expected == DOUBLES and size % 8):
            raise BrokenFileError(CORRUPT, f"half a number in {kind} at byte {self.cursor.at}")
        if expected == INTS:
            return self._packed(size, values=(kind, number) == ("Tensor", 1))
        self.cursor.skip(size)
        return size

    def _packed(self, size: int, *, values: bool) -> object:
        stop, numbers = self.cursor.at + size, []
        if not values:
            if size:
                self.cursor.skip(size - 1)
                if self.cursor.take(1)[0] >= 128:
                    raise BrokenFileError(CORRUPT, "half a number in a list")
            return size
        while self.cursor.at < stop:
            numbers.append(varint(self.cursor))
        if self.cursor.at != stop or len(numbers) > 64:
            raise BrokenFileError(CORRUPT, "a shape that cannot be read")
        return numbers

    def _check(self, kind: str, found: dict[int, list[object]]) -> None:
        if kind == "Node":
            self.domains |= {str(domain) for domain in found.get(7, [])}
        elif kind == "Function":
            self.functions |= {str(domain) for domain in found.get(10, [])}
        elif kind == "Tensor":
            self._check_tensor(found)

    def _check_tensor(self, found: dict[int, list[object]]) -> None:
        if 14 in found and found[14] != [0] and 13 not in found:
            raise BrokenFileError(CORRUPT, "a tensor in a file that is not named")
        if 13 in found:
            self._external(found)
        elif 9 in found and found[9] != [size := _bytes_of(found)]:
            raise BrokenFileError(CORRUPT, f"{found[9]} bytes for a tensor of {size}")

    def _external(self, found: dict[int, list[object]]) -> None:
        """Tell of every place that is named, and keep where the tensor lies if nothing about it is in doubt."""
        said: list[tuple[object, object]] = []
        for pair in found[13]:
            assert isinstance(pair, dict)
            said += [(key, value) for key in pair.get(1, [""]) for value in pair.get(2, [""])]
        for key, value in said:
            if key == "location" and value not in self.located:
                self.located.add(str(value))
                self.at.found(EXTERNAL_DATA, str(value))
                unsafe_name(str(value), self.at)
        if self.external is None:
            return
        fields, size = dict(said), _bytes_of(found)
        name, offset, length = (str(fields.pop(key, "")) for key in ("location", "offset", "length"))
        numbers = (offset or "0", length or str(size))
        once = len(said) == len({key for key, _ in said}) and not fields
        elsewhere = found.get(14) == [1] and not set(found) & DATA
        if (
            once
            and elsewhere
            and DATA_NAME.fullmatch(name)
            and NUMBER.fullmatch(numbers[0])
            and numbers[1] == str(size)
        ):
            self.external.setdefault(name, set()).add((int(numbers[0]), size))
        else:
            self.external = None


def _bytes_of(found: dict[int, list[object]]) -> int:
    """The bytes that a tensor takes, by its type and shape."""
    shape: list[int] = []
    for item in found.get(1, []):
        shape += item if isinstance(item, list) else [item] if isinstance(item, int) else []
    element = next(iter(found.get(2, [])), 0)
    bits = BITS.get(element) if isinstance(element, int) else None
    if bits is None:
        raise BrokenFileError(CORRUPT, f"a tensor of type {element}")
    return -(-math.prod(shape) * bits // 8)

"""One pickle, from a place to its STOP: the stack, the marks and the memo as the loader has them, and nothing run.

Imports are denied unless `allowed` knows them, and calls unless it knows them in that place with such arguments. What
is refused becomes a finding and an opaque value, and reading goes on, so that the whole pickle is seen.

Deviates  A frame must end between two opcodes: of CPython's two loaders one ignores frames, the other obeys them.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from vetgate.scan.pickles import allowed
from vetgate.scan.pickles.nodes import (
    OPAQUE,
    Import,
    Listed,
    Long,
    Mapped,
    Opaque,
    Plain,
    Raw,
    Storage,
    Tupled,
    loose,
    shown,
    tupled,
)
from vetgate.scan.pickles.opcodes import LINES, OPCODES
from vetgate.scan.rules import (
    LIMIT,
    PICKLE_BROKEN,
    PICKLE_MISUSE,
    PICKLE_OBJECTS,
    PICKLE_UNRESOLVED,
    ScanRule,
)
from vetgate.scan.source import BrokenFileError, Cursor, Source

MAX_OPCODES = 600_000
MAX_LINE = 1 << 20
MAX_TEXT = 1 << 16
# bytes and digits of a number
MAX_NUMBER, MAX_DIGITS = 64, 160
MAX_MEMO = 1 << 24
NEWEST = 5
Found = Callable[[ScanRule, str], None]


class Machine:
    """Reads one pickle of `source` from `at` on; `found` is told of what is wrong."""

    def __init__(self, source: Source, at: int, found: Found, *, most: int = MAX_OPCODES, script: bool = False) -> None:
        self.cursor, self.tell, self.most, self.script = Cursor(source, at), found, most, script
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.calls = self.imports = self.read = 0
        self.protocol = 0
        self.frame_end: int | None = None
        self.started = at

    def run(self) -> Any:
        """What the pickle leaves on the stack; raises BrokenFileError where it cannot be read on."""
        byte = self.cursor
        try:
            while True:
                opcode_at = byte.at
                if self.frame_end is not None and opcode_at >= self.frame_end:
                    self._end_frame(opcode_at)
                opcode = byte.take(1)[0]
                step = STEPS[opcode]
                if step is None:
                    raise BrokenFileError(PICKLE_BROKEN, f"no opcode {opcode:#04x} at byte {opcode_at}")
                self.read += 1
                if self.read > self.most:
                    raise BrokenFileError(LIMIT, f"more than {self.most} opcodes in a pickle")
                work, layout = step
                if layout is None:
                    work(self)
                elif isinstance(layout, struct.Struct):
                    work(self, byte.number(layout))
                else:
                    work(self, *self._lines(layout))
        except _StopReached:
            if self.frame_end is not None and byte.at != self.frame_end:
                self.found(PICKLE_BROKEN, f"a frame that goes on after the end, at byte {byte.at}")
            return self._ended()
        except BrokenFileError as error:
            if error.rule in (LIMIT, PICKLE_BROKEN):
                raise
            raise BrokenFileError(PICKLE_BROKEN, str(error)) from error

    def _lines(self, count: int) -> list[bytes]:
        try:
            return [self.cursor.line(MAX_LINE) for _ in range(count)]
        except BrokenFileError:
            if count == LINES:
                self.imports += 1
                # one of CPython's loaders takes what is left for the name
                self.found(PICKLE_UNRESOLVED, "an import in which the file ends")
            raise

    def latin(self, node: Any) -> int | None:
        """How many characters a text has, if all of them are among the first 256; None otherwise."""
        if isinstance(node, str):
            return len(node) if all(ord(c) < 256 for c in node) else None
        if not isinstance(node, Long):
            return None
        decoder, count, source = codecs.getincrementaldecoder("utf-8")(), 0, self.cursor.source
        try:
            for at in range(node.at, node.at + node.size, MAX_TEXT):
                text = decoder.decode(source.read(at, min(MAX_TEXT, node.at + node.size - at)))
                if text and max(text) > "\xff":
                    return None
                count += len(text)
            decoder.decode(b"", True)
        except UnicodeDecodeError:
            return None
        return count

    def found(self, rule: ScanRule, evidence: str) -> None:
        self.tell(rule, f"{evidence} (byte {self.cursor.at})")

    def _ended(self) -> Any:
        value = self.pop()
        if self.stack or self.marks:
            self.found(PICKLE_BROKEN, f"{len(self.stack)} values and {len(self.marks)} marks are left at the end")
        return self._kept(value)

    def _end_frame(self, at: int) -> None:
        if at > (self.frame_end or 0):
            self.found(PICKLE_BROKEN, f"an opcode across the end of a frame at byte {self.frame_end}")
        self.frame_end = None

    # the stack

    def pop(self) -> Any:
        if not self.stack:
            raise BrokenFileError(PICKLE_BROKEN, f"nothing on the stack at byte {self.cursor.at}")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise BrokenFileError(PICKLE_BROKEN, f"nothing on the stack at byte {self.cursor.at}")
        return self.stack[-1]

    def to_mark(self) -> list[Any]:
        if not self.marks:
            raise BrokenFileError(PICKLE_BROKEN, f"no mark on the stack at byte {self.cursor.at}")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _kept(self, node: Any) -> Any:
        """A node that becomes data: an import has no business there."""
        if loose(node):
            self.found(PICKLE_MISUSE, f"{shown(node)} as a value")
            return OPAQUE
        return node

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def stop(self) -> None:
        raise _StopReached

    def drop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def drop_mark(self) -> None:
        self.to_mark()

    def dup(self) -> None:
        self.stack.append(self.top())

    # the memo

    def put(self, index: int) -> None:
        if not 0 <= index < MAX_MEMO:
            raise BrokenFileError(LIMIT, f"the memo's number {index}")
        self.memo[index] = self.top()

    def put_text(self, line: bytes) -> None:
        self.put(_index(line))

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise BrokenFileError(PICKLE_BROKEN, f"the memo has no number {index}")
        self.stack.append(self.memo[index])

    def get_text(self, line: bytes) -> None:
        self.get(_index(line))

    # values

    def number(self, value: int) -> None:
        self.stack.append(value)

    def decimal(self, value: float) -> None:
        self.stack.append(value)

    def constant_none(self) -> None:
        self.stack.append(None)

    def constant_true(self) -> None:
        self.stack.append(True)

    def constant_false(self) -> None:
        self.stack.append(False)

    def float_text(self, line: bytes) -> None:
        try:
            self.stack.append(float(line))
        except ValueError:
            self._unreadable(f"{line[:20]!r} as a number")

    def int_text(self, line: bytes) -> None:
        if line in (b"00", b"01"):
            self.stack.append(line == b"01")
        else:
            self.long_text(line)

    def long_text(self, line: bytes) -> None:
        digits = line.removesuffix(b"L")
        try:
            self.stack.append(int(digits, 0) if len(digits) <= MAX_DIGITS else Long(self.cursor.at, len(digits)))
        except ValueError:
            self._unreadable(f"{line[:20]!r} as a number")

    def long(self, size: int) -> None:
        if size < 0:
            raise BrokenFileError(PICKLE_BROKEN, f"a number of {size} bytes")
        if size > MAX_NUMBER:
            self._long(size)
        else:
            self.stack.append(int.from_bytes(self.cursor.take(size), "little", signed=True))

    def _long(self, size: int) -> None:
        self.stack.append(Long(self.cursor.at, size))
        self.cursor.skip(size)

    def _unreadable(self, what: str) -> None:
        # a loader stops here, or takes it for something else: what follows is looked at all the same
        self.found(PICKLE_BROKEN, what)
        self.stack.append(Long(self.cursor.at, 0))

    def string_text(self, line: bytes) -> None:
        if len(line) < 2 or line[0] != line[-1] or line[0] not in b"\"'":
            raise BrokenFileError(PICKLE_BROKEN, "a string without quotes")
        try:
            text = codecs.escape_decode(line[1:-1])[0].decode()
        except ValueError:
            self._unreadable("a string that is no text")
        else:
            self.stack.append(text)

    def unicode_text(self, line: bytes) -> None:
        try:
            self.stack.append(str(line, "raw-unicode-escape"))
        except ValueError:
            self._unreadable("a text with a wrong escape")

    def unicode(self, size: int) -> None:
        if size > MAX_TEXT:
            self._long(size)
            return
        try:
            self.stack.append(str(self.cursor.take(size), "utf-8", "surrogatepass"))
        except ValueError:
            self._unreadable("a text that is no UTF-8")

    def raw_bytes(self, size: int) -> None:
        self.stack.append(Raw(self.cursor.at, size))
        self.cursor.skip(size)

    def bytes_as_text(self, size: int) -> None:
        if size < 0:
            raise BrokenFileError(PICKLE_BROKEN, f"a string of {size} bytes")
        if size > MAX_TEXT:
            self._long(size)
            return
        at = self.cursor.at
        try:
            self.stack.append(self.cursor.take(size).decode())
        except UnicodeDecodeError:
            # of protocol 2, written by Python 2: bytes or a text, as the loader is told
            self.stack.append(Raw(at, size))

    # containers

    def empty_tuple(self) -> None:
        self.stack.append(Tupled((), False))

    def marked_tuple(self) -> None:
        items = self.to_mark()
        self.stack.append(tupled((*items,)))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise BrokenFileError(PICKLE_BROKEN, f"too few values for a tuple at byte {self.cursor.at}")
        items = (*self.stack[-count:],)
        del self.stack[-count:]
        self.stack.append(tupled(items))

    def empty_list(self) -> None:
        self.stack.append(Listed())

    def marked_list(self) -> None:
        items = self.to_mark()
        self.stack.append(Listed([self._kept(item) for item in items]))

    def empty_set(self) -> None:
        self.stack.append(Listed(kind="set"))

    def frozen_set(self) -> None:
        items = self.to_mark()
        self.stack.append(Listed([self._kept(item) for item in items], "frozenset"))

    def empty_dict(self) -> None:
        self.stack.append(Mapped())

    def marked_dict(self) -> None:
        pairs = self._pairs(self.to_mark())
        self.stack.append(Mapped(pairs))

    def append(self) -> None:
        value = self.pop()
        self._extend(self.top(), [value])

    def appends(self) -> None:
        items = self.to_mark()
        self._extend(self.top(), items)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self._update(self.top(), [key, value])

    def set_items(self) -> None:
        items = self.to_mark()
        self._update(self.top(), items)

    def _extend(self, target: Any, items: list[Any]) -> None:
        kept = [self._kept(item) for item in items]
        if isinstance(target, Listed):
            target.items += kept
        elif not isinstance(target, Opaque):
            self.found(PICKLE_MISUSE, f"{shown(target)} with items added as to a list")

    def _update(self, target: Any, items: list[Any]) -> None:
        pairs = self._pairs(items)
        if isinstance(target, Mapped):
            target.pairs += pairs
        elif not isinstance(target, Opaque):
            self.found(PICKLE_MISUSE, f"{shown(target)} with items set as of a dictionary")

    def _pairs(self, items: list[Any]) -> list[tuple[Any, Any]]:
        if len(items) % 2:
            raise BrokenFileError(PICKLE_BROKEN, "a key without a value")
        return [(self._kept(items[i]), self._kept(items[i + 1])) for i in range(0, len(items), 2)]

    # imports and calls

    def imported(self, module: bytes, name: bytes) -> None:
        try:
            self._import(module.decode(), name.decode())
        except UnicodeDecodeError as error:
            raise BrokenFileError(PICKLE_BROKEN, "an import that is no UTF-8") from error

    def stack_import(self) -> None:
        name, module = self.pop(), self.pop()
        if isinstance(name, str) and isinstance(module, str):
            self._import(module, name)
            return
        self.imports += 1
        self.found(PICKLE_UNRESOLVED, f"an import of {shown(module)} and {shown(name)}")
        self.stack.append(OPAQUE)

    def extension(self, code: int) -> None:
        self.imports += 1
        self.found(PICKLE_UNRESOLVED, f"number {code} of the extension registry")
        self.stack.append(OPAQUE)

    def _import(self, module: str, name: str) -> None:
        self.imports += 1
        if (module, name) in allowed.VALUES:
            self.stack.append(Import(module, name, value=True))
        elif (module, name) in allowed.CALLS or (module, name) in allowed.ARGUMENTS:
            self.stack.append(Import(module, name))
        elif self.script and (module.startswith("__torch__") or module == "torch.jit._pickle"):
            self.stack.append(Plain("script"))
        else:
            self.found(allowed.rule_of(module, name), f"{module}.{name}")
            self.stack.append(OPAQUE)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self._call(function, arguments)

    def new(self) -> None:
        arguments, made = self.pop(), self.pop()
        self._construct(made, [arguments])

    def new_keywords(self) -> None:
        keywords, arguments, made = self.pop(), self.pop(), self.pop()
        self._construct(made, [arguments, keywords])

    def inst(self, module: bytes, name: bytes) -> None:
        # one of CPython's loaders looks for the mark only after the import
        self.imported(module, name)
        made = self.pop()
        self._construct(made, self.to_mark())

    def obj(self) -> None:
        items = self.to_mark()
        if not items:
            raise BrokenFileError(PICKLE_BROKEN, "an object without a class")
        self._construct(items[0], items[1:])

    def _call(self, function: Any, arguments: Any) -> None:
        self.calls += 1
        made: Any = OPAQUE
        call = allowed.CALLS.get((function.module, function.name)) if isinstance(function, Import) else None
        if call is not None and isinstance(arguments, Tupled):
            made = call(self, arguments.items)
            if made is None:
                self.found(PICKLE_MISUSE, f"{function} called with ({', '.join(map(shown, arguments.items))})")
                made = OPAQUE
        elif not isinstance(function, Opaque) and not (self.script and isinstance(function, Plain)):
            self.found(PICKLE_MISUSE, f"a call of {shown(function)}")
        self.stack.append(made)

    def _construct(self, made: Any, arguments: list[Any]) -> None:
        self.calls += 1
        for argument in arguments:
            self._kept(argument)
        # of the allowed imports none is made in this way by what writes them
        if not isinstance(made, Opaque) and not (self.script and isinstance(made, Plain)):
            self.found(PICKLE_MISUSE, f"an object made of {shown(made)}")
        self.stack.append(OPAQUE if not self.script else Plain("script"))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Opaque) or (self.script and isinstance(target, Plain)):
            self._kept(state)
        elif not allowed.build(target, state):
            self.found(PICKLE_MISUSE, f"the state of {shown(target)} set to {shown(state)}")

    def persistent(self) -> None:
        node = self.pop()
        storage = allowed.storage(node)
        if storage is None:
            self.found(PICKLE_OBJECTS, f"a persistent id of {shown(node)}")
            self.stack.append(OPAQUE)
            return
        first = self.storages.setdefault(storage.key, storage)
        # the loader keeps the first one and does not look at what is said of it later
        if (first.type, first.count) != (storage.type, storage.count):
            self.found(PICKLE_BROKEN, f"storage {storage.key} is given twice, as {first.type} and {storage.type}")
        self.stack.append(first)

    def persistent_text(self, line: bytes) -> None:
        self.found(PICKLE_OBJECTS, f"the persistent id {line[:40]!r}")
        self.stack.append(OPAQUE)

    def next_buffer(self) -> None:
        self.found(PICKLE_OBJECTS, "a buffer from elsewhere")
        self.stack.append(OPAQUE)

    def read_only(self) -> None:
        self.top()

    def set_protocol(self, version: int) -> None:
        if version > NEWEST:
            raise BrokenFileError(PICKLE_BROKEN, f"protocol {version}")
        self.protocol = version

    def frame(self, size: int) -> None:
        if self.frame_end is not None:
            self.found(PICKLE_BROKEN, "a frame within a frame")
        self.frame_end = self.cursor.at + size
        if self.frame_end > self.cursor.end:
            # of CPython's loaders one goes on
            self.found(PICKLE_BROKEN, f"a frame of {size} bytes, which is longer than what is left")
            self.frame_end = None


class _StopReached(Exception):
    pass


def _index(line: bytes) -> int:
    try:
        return int(line[:MAX_DIGITS])
    except ValueError as error:
        raise BrokenFileError(PICKLE_BROKEN, f"{line[:20]!r} as a place of the memo") from error


_METHODS: dict[str, Callable[..., None]] = {
    "mark": Machine.mark,
    "stop": Machine.stop,
    "pop": Machine.drop,
    "pop_mark": Machine.drop_mark,
    "float": Machine.decimal,
    "none": Machine.constant_none,
    "true": Machine.constant_true,
    "false": Machine.constant_false,
    "tuple": Machine.marked_tuple,
    "list": Machine.marked_list,
    "dict": Machine.marked_dict,
    "bytes": Machine.raw_bytes,
    "tuple_1": lambda machine: machine.tuple_of(1),
    "tuple_2": lambda machine: machine.tuple_of(2),
    "tuple_3": lambda machine: machine.tuple_of(3),
    "add_items": Machine.appends,
    "protocol": Machine.set_protocol,
    "read_only_buffer": Machine.read_only,
}
Step = tuple[Callable[..., None], int | struct.Struct | None]
STEPS: list[Step | None] = [None] * 256
for _code, (_name, _layout) in OPCODES.items():
    STEPS[_code] = (_METHODS.get(_name) or getattr(Machine, _name), _layout or None)

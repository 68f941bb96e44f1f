"""Bytes that can be read at any place: of an open file, of a part of it, or unpacked into memory or onto disk."""

from __future__ import annotations

import os
import struct
import tempfile
from typing import IO, Protocol

from vetgate.scan.rules import CORRUPT, ScanRule

CHUNK = 1 << 18
IN_MEMORY = 8 << 20


class BrokenFileError(Exception):
    """What is read breaks a rule in such a way that its reader cannot go on."""

    def __init__(self, rule: ScanRule, evidence: str) -> None:
        super().__init__(evidence)
        self.rule = rule


class Source(Protocol):
    """Some bytes: how many, and those at a place."""

    size: int

    def read(self, at: int, count: int) -> bytes:
        """Exactly `count` bytes from `at` on; raises BrokenFileError where there are fewer."""


class InMemory:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, at: int, count: int) -> bytes:
        _check(at, count, self.size)
        return self.data[at : at + count]


class OpenFile:
    """A plain file that is open under a descriptor; as long as it was when it was opened."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size = descriptor, os.fstat(descriptor).st_size

    def read(self, at: int, count: int) -> bytes:
        _check(at, count, self.size)
        pieces = []
        while count:
            piece = os.pread(self.descriptor, min(count, 1 << 24), at)
            if not piece:
                raise BrokenFileError(CORRUPT, f"the file ends at byte {at}: it was cut while it was read")
            pieces.append(piece)
            at, count = at + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Part:
    """A part of other bytes."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        _check(start, size, source.size)
        self.source, self.start, self.size = source, start, size

    def read(self, at: int, count: int) -> bytes:
        _check(at, count, self.size)
        return self.source.read(self.start + at, count)


class Spool:
    """Bytes that are written once, piece by piece, and then read: few of them in memory, more in a nameless file."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces = bytearray()
        self._file: IO[bytes] | None = None

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._file is None and self.size > IN_MEMORY:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it goes with the spool
            self._file.write(self._pieces)
            self._pieces = bytearray()
        if self._file is None:
            self._pieces += piece
        else:
            self._file.write(piece)

    def read(self, at: int, count: int) -> bytes:
        _check(at, count, self.size)
        if self._file is None:
            return bytes(self._pieces[at : at + count])
        return os.pread(self._file.fileno(), count, at)


class Cursor:
    """A place in a source from which is read on; small reads cost no call of the system."""

    def __init__(self, source: Source, at: int = 0, end: int | None = None) -> None:
        self.source, self.end = source, source.size if end is None else end
        self.buffer, self.begin, self.index = b"", at, 0

    @property
    def at(self) -> int:
        return self.begin + self.index

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        stop = self.index + count
        if stop > len(self.buffer):
            self._fill(count)
            stop = count
        found = self.buffer[self.index : stop]
        self.index = stop
        return found

    def skip(self, count: int) -> None:
        """Go on by `count` bytes without reading them."""
        _check(self.at, count, self.end)
        self.begin, self.index, self.buffer = self.at + count, 0, b""

    def line(self, most: int) -> bytes:
        """What stands before the next newline, which is passed over."""
        found = self.buffer.find(b"\n", self.index)
        if found < 0:
            self._fill(min(most, self.end - self.at))
            found = self.buffer.find(b"\n")
        if found < 0 or found - self.index > most:
            raise BrokenFileError(CORRUPT, f"no end of the line at byte {self.at}")
        text = self.buffer[self.index : found]
        self.index = found + 1
        return text

    def number(self, layout: struct.Struct) -> int:
        """The next number of a fixed size."""
        value: int = layout.unpack(self.take(layout.size))[0]
        return value

    def _fill(self, count: int) -> None:
        at = self.at
        _check(at, count, self.end)
        self.begin, self.index = at, 0
        self.buffer = self.source.read(at, min(max(count, CHUNK), self.end - at))


def _check(at: int, count: int, size: int) -> None:
    if at < 0 or count < 0 or at + count > size:
        raise BrokenFileError(CORRUPT, f"expected {count} bytes at byte {at}, got the end at byte {size}")

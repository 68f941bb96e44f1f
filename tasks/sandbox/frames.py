"""Frames, the only thing that crosses the sandbox's pipes: kind (1 byte), request (uint32), length (uint32), body.

Q  a request from the host: JSON {op, payload, limits}
P  progress of a request: a float64
R  the answer of a fork: JSON {ok} or {error}, untrusted, parsed by the host alone
E  how the fork of a request ended, from the parent inside: JSON; request 0 tells that the parent is ready
"""

from __future__ import annotations

import os
import struct

HEADER = struct.Struct("!cII")
FRACTION = struct.Struct("!d")


def write_frame(fd: int, kind: bytes, request: int, body: bytes) -> None:
    """Write one whole frame."""
    left = memoryview(HEADER.pack(kind, request, len(body)) + body)
    while left:
        left = left[os.write(fd, left) :]


def read_frame(fd: int, *, most: int) -> tuple[bytes, int, bytes] | None:
    """The next frame (kind, request, body), None at the end; raises ValueError on a body of more than `most` bytes."""
    header = _read(fd, HEADER.size)
    if len(header) < HEADER.size:
        return None
    kind, request, length = HEADER.unpack(header)
    if length > most:
        raise ValueError(f"expected a frame of at most {most} bytes, got {length}")
    body = _read(fd, length)
    return (kind, request, body) if len(body) == length else None


def _read(fd: int, length: int) -> bytes:
    seen = bytearray()
    while len(seen) < length and (chunk := os.read(fd, min(length - len(seen), 1 << 20))):
        seen += chunk
    return bytes(seen)

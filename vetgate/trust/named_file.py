"""Files that a user or a setting names: read up to a bound, since a name may be that of a device or of a disk image.

A pipe is read too, such as `<(command)` gives, and waited for as long as what fetches a file may take.
"""

from __future__ import annotations

import errno
import os
import select
import time
from pathlib import Path

MOST = 16 * 1024 * 1024
SECONDS = 30.0


def read_named(path: Path, most: int = MOST) -> bytes:
    """The whole content of a file; raises OSError, also for one of more than `most` bytes or that does not end."""
    return read_with_mode(path, most)[0]


def read_with_mode(path: Path, most: int = MOST) -> tuple[bytes, int]:
    """As `read_named`, with the permissions of the very file that was read."""
    # not blocking: a pipe without a writer is otherwise waited for before it can be limited
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        mode, until, data = os.fstat(file.fileno()).st_mode & 0o777, time.monotonic() + SECONDS, bytearray()
        ready = select.poll()
        ready.register(file, select.POLLIN)
        while len(data) <= most:
            if not ready.poll(max(0.0, until - time.monotonic()) * 1000):
                raise OSError(errno.ETIMEDOUT, f"a pipe that did not end within {SECONDS:g} seconds", str(path))
            part = file.read(most + 1 - len(data))
            if part == b"":
                return bytes(data), mode
            data += part or b""
    raise OSError(errno.EFBIG, f"{os.strerror(errno.EFBIG)}, more than {most} bytes", str(path))

"""Files that a user or a setting names: read up to a bound, since a name may be that of a device or of a disk image."""

from __future__ import annotations

import errno
import os
from pathlib import Path

MOST = 16 * 1024 * 1024


def read_named(path: Path, most: int = MOST) -> bytes:
    """The whole content of a file; raises OSError, also for one of more than `most` bytes."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"{os.strerror(errno.EFBIG)}, more than {most} bytes", str(path))
    return data

"""Waiting for a lock on a file no longer than is said: what holds it may itself wait for ever."""

from __future__ import annotations

import fcntl
import time
from typing import IO, Any

POLL_SECONDS = 0.02


def locked_within(lock: IO[Any], seconds: float) -> bool:
    """Whether this process got the lock on an open file, which then holds it until that is closed."""
    ends = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > ends:
                return False
            time.sleep(POLL_SECONDS)

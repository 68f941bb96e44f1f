"""Properties of this process that only prctl(2) sets."""

from __future__ import annotations

import ctypes

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38


def prctl(option: int, value: int, address: int = 0) -> None:
    """Set a property of this process; raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    rest = (ctypes.c_ulong(each) for each in (value, address, 0, 0))
    if libc.prctl(option, *rest) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")

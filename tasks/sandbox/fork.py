"""What a fork of the sandbox's parent does: shut itself in, run one operation, answer, end.

Limits and filter are set before anything that was submitted is opened, and cannot be lifted again.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tasks.sandbox.frames import FRACTION, write_frame
from tasks.sandbox.prctl import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, prctl
from tasks.sandbox.seccomp import refuse_system_calls
from vetgate.errors import NotFinite, StoreError, VetgateError

Op = Callable[[Mapping[str, Any], Callable[[float], None]], dict[str, Any]]

CPU_GRACE_SECONDS = 5
# addresses for each byte of memory: libraries map more than they touch. It bounds what is taken between two looks
ADDRESSES = 2
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# torch and C++ libraries report a refused allocation in words only
NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory", "out of memory")


def work(
    op: Op | None, call: Mapping[str, Any], *, level: int, request: int, parent: int, answers: int, errors: int
) -> NoReturn:
    """Run one operation in this fresh fork, write its answer to `answers` and end the process."""
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        # the dumpable flag was taken from the parent alone; without it a process cannot read its own /proc
        prctl(PR_SET_DUMPABLE, 1)
        for fd in (1, 2):
            os.dup2(errors, fd)
        os.close(errors)
        limits = call["limits"]
        _shut_in(limits)
        if level > 0:
            refuse_system_calls()

        import torch

        torch.set_num_threads(limits["threads"])

        def progress(fraction: float) -> None:
            write_frame(answers, b"P", request, FRACTION.pack(fraction))

        write_frame(answers, b"R", request, _answer(op, call, progress))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _shut_in(limits: Mapping[str, Any]) -> None:
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, limits["open_files"])
    _limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    _limit(resource.RLIMIT_CPU, limits["cpu_seconds"], grace=CPU_GRACE_SECONDS)
    if limits["device"] == "cpu":
        _limit(resource.RLIMIT_AS, limits["memory_bytes"] * ADDRESSES)


def _limit(which: int, wanted: int, *, grace: int = 0) -> None:
    most = resource.getrlimit(which)[1]
    hard = wanted + grace if most == resource.RLIM_INFINITY else min(wanted + grace, most)
    resource.setrlimit(which, (min(wanted, hard), hard))


def _answer(op: Op | None, call: Mapping[str, Any], progress: Callable[[float], None]) -> bytes:
    try:
        if op is None:
            raise ValueError(f"the sandbox has no operation {call['op']!r}")
        return _encode({"ok": op(call["payload"], progress)})
    except BaseException as error:
        # frames hold on to the tensors, and writing the answer needs memory
        traceback.clear_frames(error.__traceback__)
        names, message = _named(error)
        if names == ["Crashed"]:
            traceback.print_exc()
    return _encode({"error": {"names": names, "message": message}})


def _encode(answer: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise NotFinite(f"expected finite numbers in the result, got NaN or infinity ({error}); refuse it") from error


def _named(error: BaseException) -> tuple[list[str], str]:
    """The names of the error's classes that the host may know, nearest first, and its message."""
    text = str(error)
    if isinstance(error, VetgateError):
        return [c.__name__ for c in type(error).__mro__ if issubclass(c, VetgateError)], text
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return ["OutOfMemory"], text
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f" at {error.filename}" if error.filename else ""
        return [StoreError.__name__], f"expected room for a file{where}, got {error.strerror}; make room there"
    return ["Crashed"], f"{type(error).__name__}: {text}"

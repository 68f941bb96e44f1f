"""The process that opens files to be scanned: no torch, little memory, limits on time, and no way out but its answer.

It reads one JSON object a line, {"path", "file", "seconds", "parts"}, and answers each with one line. Whatever a file
does to it, the worst is that it ends.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Iterable

from tasks.sandbox.prctl import PR_SET_PDEATHSIG, prctl
from tasks.sandbox.seccomp import refuse_system_calls
from vetgate.scan.inspection import Finding
from vetgate.scan.onnx_data import inspect_data
from vetgate.scan.recognise import inspect
from vetgate.scan.rules import LINK, UNFINISHED, UNREAD
from vetgate.scan.scanned import ScannedFile
from vetgate.scan.source import OpenFile

MEMORY_BYTES = 512 << 20
FILE_BYTES = 8 << 30
OPEN_FILES = 64
CHUNK = 1 << 20
# no link is followed, and no pipe waited for
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def main() -> None:
    """Answer every line of stdin on stdout until there is none."""
    # what is read makes many values and few cycles
    gc.set_threshold(200_000, 50, 50)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for which, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (most, most))
    refuse_system_calls(limits_change=True)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        _spend_at_most(asked["seconds"])
        parts = asked["parts"] and [(start, size) for start, size in asked["parts"]]
        scanned = scan_file(asked["path"], asked["file"], parts)
        sys.stdout.buffer.write(json.dumps(scanned.to_json()).encode() + b"\n")
        sys.stdout.buffer.flush()


def scan_file(path: str, file: str, parts: Iterable[tuple[int, int]] | None = None) -> ScannedFile:
    """Scan one file, which is called `path` in what is found; with `parts` as numbers of an ONNX file beside it."""
    try:
        descriptor = os.open(file, FLAGS)
    except OSError as error:
        return ScannedFile(path, 0, None, (Finding(UNREAD.id, path, "", error.strerror or "it cannot be opened"),))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ScannedFile(path, 0, None, (Finding(LINK.id, path, "", "no plain file"),))
        source = OpenFile(descriptor)
        sha256 = _digest(source)
        inspected = inspect(path, source) if parts is None else inspect_data(path, source, parts)
        found = inspected.findings
        # files of /proc have more to read than they say
        if source.size != os.fstat(descriptor).st_size or os.pread(descriptor, 1, source.size):
            found.append(Finding(UNFINISHED.id, path, "", "it changed while it was read, or is longer than it says"))
        return ScannedFile(path, source.size, sha256, tuple(found), inspected.external or {})
    except OSError as error:
        return ScannedFile(path, 0, None, (Finding(UNREAD.id, path, "", error.strerror or "it cannot be read"),))
    finally:
        os.close(descriptor)


def _digest(source: OpenFile) -> str:
    digest = hashlib.sha256()
    for at in range(0, source.size, CHUNK):
        digest.update(source.read(at, min(CHUNK, source.size - at)))
    return digest.hexdigest()


def _spend_at_most(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))

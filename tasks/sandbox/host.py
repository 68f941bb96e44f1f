"""The sandbox as the host sees it: JSON in, JSON out, and whatever a submitted file does stays inside.

One sandbox serves one vetting. `start` returns at once, so that importing torch inside overlaps with the host's work.
Every call runs in a fresh fork under its own limits; what comes back is not trusted and parsed strictly. When the host
dies, by whatever signal, nothing of the sandbox is left.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NoReturn, Self

from tasks.sandbox.answers import (
    MORE_TIME,
    Crashed,
    Died,
    Limits,
    OutOfMemory,
    SandboxError,
    SandboxUnavailable,
    TimedOut,
    conclude,
    printable,
)
from tasks.sandbox.frames import FRACTION, read_frame, write_frame
from tasks.sandbox.levels import available_level, command
from vetgate.errors import StoreError

__all__ = [
    "Crashed",
    "Died",
    "Limits",
    "OutOfMemory",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailable",
    "TimedOut",
    "available_level",
]

OPS = Path(__file__).resolve().parent / "operations.py"
# what the parent inside gets beyond a fork's time before the host kills both
GRACE_SECONDS = 15
FRAME_BYTES = 1 << 30
STDERR_BYTES = 8192


class Sandbox:
    """A started or startable sandbox; `level` is 0 (limits), 1 (a filter of system calls besides) or 2 (bubblewrap).

    `read_only` are directories that may be filled after the start, `scratch` is the one directory that can be written;
    paths are the same inside. An int `level` demands exactly that one: raises SandboxUnavailable where the host cannot
    give it. `ops` is the file whose OPS can be called. Calls may compute on `device` besides the processor.
    """

    def __init__(
        self,
        *,
        scratch: Path,
        read_only: Sequence[Path] = (),
        level: Literal["auto"] | int = "auto",
        limits: Limits | None = None,
        ops: Path = OPS,
        start_seconds: float = 300,
        device: str = "cpu",
    ) -> None:
        best = available_level()
        self.level = best if level == "auto" else level
        if self.level not in range(best + 1):
            raise SandboxUnavailable(
                f"expected a sandbox of level {level}, got at most {best} on this host; "
                "allow seccomp (level 1) and bubblewrap (level 2) here, or demand less in the policy"
            )
        self.limits = limits or Limits()
        # what the last call used
        self.cpu_seconds = 0.0
        self._scratch, self._ops, self._device = scratch.absolute(), ops, device
        self._read_only = [path.absolute() for path in read_only]
        self._lock = threading.Lock()
        self._frames: queue.SimpleQueue[tuple[bytes, int, bytes] | None] = queue.SimpleQueue()
        self._requests = itertools.count(1)
        self._stderr = b""
        self._home = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._refused: OSError | None = None
        self._start_seconds = start_seconds
        self._ready = False
        self._late = ""
        self._gone = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start the parent inside and return at once; a started sandbox is left as it is."""
        if self._process is not None or self._gone:
            return
        for path in (*self._read_only, self._scratch):
            if not path.exists():
                raise SandboxUnavailable(f"expected {path} to be there for the sandbox, got nothing; make it first")
        try:
            self._home = tempfile.mkdtemp(prefix=".home-", dir=self._scratch) if self.level < 2 else ""
        except OSError as error:
            raise StoreError(f"expected to write to {self._scratch}, got {error.strerror}; make room there") from error
        spawned = threading.Event()
        # the kernel kills the sandbox when the thread that started it ends, so that thread stays until the sandbox ends
        threading.Thread(target=self._attend, args=(spawned,), name="vetgate-sandbox", daemon=True).start()
        spawned.wait()
        if self._refused is not None:
            self.close()
            raise SandboxUnavailable(f"expected the sandbox to start, got {self._refused}") from self._refused

    def call(
        self,
        op: str,
        payload: Mapping[str, Any],
        *,
        limits: Limits | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> dict[str, Any]:
        """Run one operation inside; calls wait for each other.

        Raises Crashed, TimedOut, OutOfMemory, or the VetgateError that the operation raised, with its message.
        """
        settled = limits or self.limits
        body = json.dumps({"op": op, "payload": payload, "limits": settled.to_json()}, allow_nan=False).encode()
        with self._lock:
            self.start()
            try:
                if not self._ready:
                    self._converse(0, b"", self._start_seconds, None)
                    self._ready = True
                seconds = settled.wall + GRACE_SECONDS
                answer, end = self._converse(next(self._requests), body, seconds, on_progress)
            except BaseException:
                # a call that was broken off would leave its frames to the next one
                self.close()
                raise
        ended = json.loads(end)
        self.cpu_seconds = float(ended["cpu_seconds"])
        return conclude(op, settled, answer, ended)

    def close(self) -> None:
        """Kill everything inside; the sandbox cannot be started again."""
        self._gone = self._gone or "it was closed"
        process = self._process
        if process is not None:
            with suppress(OSError):
                _pipe(process.stdin).close()
            # at the end of its input the parent inside takes along what its forks started
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            self._kill()
            process.wait()
        if self._home:
            shutil.rmtree(self._home, ignore_errors=True)

    def _attend(self, spawned: threading.Event) -> None:
        environment = self._environment()
        line = command(
            self.level,
            ops=self._ops,
            environment=environment,
            read_only=self._read_only,
            scratch=self._scratch,
            device=self._device,
        )
        pipe = subprocess.PIPE
        try:
            self._process = process = subprocess.Popen(
                line, env=environment, cwd=self._scratch, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            self._refused = error
            return
        finally:
            spawned.set()
        errors = threading.Thread(target=self._keep_errors, args=(_pipe(process.stderr).fileno(),), daemon=True)
        errors.start()
        try:
            while frame := read_frame(_pipe(process.stdout).fileno(), most=FRAME_BYTES):
                self._frames.put(frame)
        except (ValueError, OSError):
            self._kill()
        process.wait()
        errors.join(timeout=1)
        self._frames.put(None)
        for end in (process.stdout, process.stderr):
            _pipe(end).close()

    def _environment(self) -> dict[str, str]:
        home = self._home or "/tmp"
        threads = str(self.limits.threads)
        return {
            "HOME": home,
            "TMPDIR": home,
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            # threads that spin while they wait cost three times their gain when another process wants the core
            "OMP_WAIT_POLICY": "PASSIVE",
            # no plugin of torch is looked for among the installed packages
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            # buffers of large images come and go: pages of 2 MiB take a quarter off a gradient at 224 pixels
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            # OpenBLAS starts its threads on import, and a process with threads must not fork
            "OPENBLAS_NUM_THREADS": "1",
        }

    def _keep_errors(self, fd: int) -> None:
        with suppress(OSError):
            while chunk := os.read(fd, 1 << 16):
                self._stderr = (self._stderr + chunk)[-STDERR_BYTES:]

    def _converse(
        self, request: int, body: bytes, seconds: float, on_progress: Callable[[float], None] | None
    ) -> tuple[bytes, bytes]:
        """Send a request (0: none, the parent tells that it is ready) and hear it out: the bodies of answer and end."""
        if self._gone or self._process is None:
            raise Crashed(f"expected a running sandbox, got none: {self._gone}; start another one")
        late = (
            f"expected an answer from the sandbox within {seconds:.0f} s, got none; it was killed: free this host, "
            f"{MORE_TIME}, or refuse the model"
            if request
            else f"expected the sandbox to start within {seconds:.0f} s, got no word of it; this host is busy: vet "
            "again later, or set VETGATE_START_SECONDS to more"
        )
        watchdog = threading.Timer(seconds, self._overdue, [late])
        watchdog.daemon = True
        watchdog.start()
        answer = b""
        try:
            if request:
                with suppress(BrokenPipeError):
                    write_frame(_pipe(self._process.stdin).fileno(), b"Q", request, body)
            while frame := self._frames.get():
                kind, about, said = frame
                if about != request:
                    self._fail("it answered a question that was not asked")
                if kind == b"E":
                    return answer, said
                if kind == b"R":
                    answer = said
                elif on_progress is not None and 0 <= (fraction := FRACTION.unpack(said)[0]) <= 1:
                    on_progress(fraction)
        finally:
            watchdog.cancel()
        self._fail("it ended by itself" if request else "it could not start")

    def _fail(self, reason: str) -> NoReturn:
        self._gone = reason = self._gone or reason
        tail = printable(self._stderr.decode(errors="replace"), last=True)
        if self._late:
            raise TimedOut(self._late, tail)
        final = tail.strip().rpartition("\n")[2]
        raise Crashed(f"expected the sandbox to go on, got its end: {reason}" + (f" ({final})" if final else ""), tail)

    def _overdue(self, late: str) -> None:
        self._late = late
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None, "every standard stream of the sandbox is a pipe"
    return end

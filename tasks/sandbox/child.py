"""The parent inside the sandbox: imports torch once, opens no submitted file, forks one process for every request.

Only such a fork touches what was submitted, and it is not trusted: it answers through a pipe of its own and is killed
with all it started once the answer is there or its time is up. The parent runs no torch operation, so that no other
thread exists when it forks.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tasks.sandbox import fork as sandbox_fork
from tasks.sandbox.fork import Op
from tasks.sandbox.frames import FRACTION, HEADER, read_frame, write_frame
from tasks.sandbox.prctl import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, prctl

STDERR_BYTES = 8192
PROGRESS_SECONDS = 0.1
REQUEST_BYTES = 1 << 30
# how often all that a fork has started is looked for, and what it is known to have is looked at: the kernel limits each
# process by itself, and memory by addresses alone
COUNT_SECONDS, LOOK_SECONDS = 2.0, 0.2
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def main(level: int, ops_file: str) -> NoReturn:
    """Serve requests from standard input until it ends, with the operations of a file's OPS."""
    requests, replies = os.dup(0), os.dup(1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    # whatever a library prints must not reach the pipe that carries frames
    os.dup2(2, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    gc.disable()
    import torch

    ops = _load(ops_file)
    # keeps the collector of a fork from touching, and so copying, every page it shares; collecting first costs more
    # than the little garbage of the imports is worth
    gc.freeze()
    gc.enable()
    ready = {"threads": len(os.listdir("/proc/self/task")), "torch": torch.__version__}
    # a fork must not trace the process that serves the requests after its own
    prctl(PR_SET_DUMPABLE, 0)
    # from here on the host's death is a chance to take along what a fork has started
    signal.signal(signal.SIGTERM, _stop)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        write_frame(replies, b"E", 0, json.dumps(ready).encode())
        while frame := read_frame(requests, most=REQUEST_BYTES):
            _, request, body = frame
            _serve(ops, level, request, json.loads(body), requests, replies)
    finally:
        os._exit(0)


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit


def _load(ops_file: str) -> Mapping[str, Op]:
    spec = importlib.util.spec_from_file_location("sandbox_operations", ops_file)
    if spec is None or spec.loader is None:
        raise ImportError(f"expected a Python file of operations, got {ops_file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    ops: Mapping[str, Op] = module.OPS
    return ops


def _serve(ops: Mapping[str, Op], level: int, request: int, call: dict[str, Any], requests: int, replies: int) -> None:
    answers, answer_end = os.pipe()
    errors, error_end = os.pipe()
    parent = os.getpid()
    deadline = time.monotonic() + call["limits"]["wall_seconds"]
    pid = os.fork()
    if pid == 0:
        for fd in (requests, replies, answers, errors):
            os.close(fd)
        op = ops.get(call["op"])
        sandbox_fork.work(op, call, level=level, request=request, parent=parent, answers=answer_end, errors=error_end)
    os.close(answer_end)
    os.close(error_end)
    for fd in (answers, errors):
        os.set_blocking(fd, False)
    fork = Fork(request, pid, answers, errors, replies, limits=call["limits"], memory=_memory(level))
    try:
        outcome = fork.watch(requests, deadline)
    finally:
        end = fork.end()
    with suppress(BlockingIOError):
        while outcome is None and fork.listen():
            outcome = fork.received()
    with suppress(BlockingIOError):
        while fork.keep_errors():
            pass
    os.close(answers)
    os.close(errors)
    end |= {"outcome": outcome or _read_status(end, call["limits"]), "stderr": fork.tail.decode(errors="replace")}
    write_frame(replies, b"E", request, json.dumps(end).encode())


def _read_status(end: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    """Name the end of a fork that gave no answer and was not stopped."""
    if end["signal"] == signal.SIGXCPU or end["cpu_seconds"] >= limits["cpu_seconds"]:
        return "cpu"
    return "signal" if end["signal"] else "exit"


@dataclass
class Fork:
    """One fork, watched from its start to its end."""

    request: int
    pid: int
    answers: int
    errors: int
    replies: int
    limits: Mapping[str, Any]
    memory: Sequence[str]
    buffer: bytearray = field(default_factory=bytearray)
    tail: bytes = b""
    reported: float = 0.0
    spent: float = 0.0
    below: frozenset[int] = frozenset()

    def watch(self, requests: int, deadline: float) -> str | None:
        """Forward what the fork says until it has answered, broken the protocol, ended (None) or passed a limit."""
        self.below = frozenset([self.pid])
        counted = looked = time.monotonic()
        pidfd = os.pidfd_open(self.pid)
        poller = select.poll()
        for fd in (self.answers, self.errors, pidfd):
            poller.register(fd, select.POLLIN)
        # no event but the hang-up that the host's end brings
        poller.register(requests, 0)
        try:
            while (left := deadline - time.monotonic()) > 0:
                if (now := time.monotonic()) - counted >= COUNT_SECONDS:
                    counted, self.below = now, _below()
                if now - looked >= LOOK_SECONDS:
                    looked = now
                    if passed := self.passed():
                        return passed
                for fd, _ in poller.poll(min(left, LOOK_SECONDS) * 1000):
                    if fd == requests:
                        raise SystemExit
                    if fd == pidfd:
                        return None
                    if not (self.keep_errors() if fd == self.errors else self.listen()):
                        poller.unregister(fd)
                    elif fd == self.answers and (outcome := self.received()):
                        return outcome
            return "wall"
        finally:
            os.close(pidfd)

    def passed(self) -> str | None:
        """The limit that the fork and all it has started passed together, if any."""
        seen = [use for pid in self.below if (use := _use(pid)) is not None]
        self.spent = max(self.spent, sum(use.cpu_seconds for use in seen))
        if self.spent >= self.limits["cpu_seconds"]:
            return "cpu"
        if sum(use.memory_bytes for use in seen) + sum(map(_held, self.memory)) > self.limits["memory_bytes"]:
            return "memory"
        return "tasks" if sum(use.threads for use in seen) > self.limits["tasks"] else None

    def listen(self) -> bool:
        """Read on from the answer pipe; False at its end."""
        chunk = os.read(self.answers, 1 << 20)
        self.buffer += chunk
        return bool(chunk)

    def keep_errors(self) -> bool:
        """Read on from the error pipe, of which only the tail is kept; False at its end."""
        chunk = os.read(self.errors, 1 << 16)
        self.tail = (self.tail + chunk)[-STDERR_BYTES:]
        return bool(chunk)

    def received(self) -> str | None:
        """Forward every whole frame; "result" after the answer, "garbage" or "oversized" for anything else."""
        while len(self.buffer) >= HEADER.size:
            kind, request, length = HEADER.unpack_from(self.buffer)
            if request != self.request or kind not in (b"P", b"R") or (kind == b"P" and length != FRACTION.size):
                return "garbage"
            if length > self.limits["result_bytes"]:
                return "oversized"
            if len(self.buffer) < HEADER.size + length:
                return None
            body = bytes(self.buffer[HEADER.size : HEADER.size + length])
            del self.buffer[: HEADER.size + length]
            if kind == b"R":
                write_frame(self.replies, b"R", self.request, body)
                return "result"
            if time.monotonic() - self.reported >= PROGRESS_SECONDS:
                self.reported = time.monotonic()
                write_frame(self.replies, b"P", self.request, body)
        return None

    def end(self) -> dict[str, Any]:
        """Kill the fork and everything it has started, and tell how it ended."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        with suppress(ChildProcessError):
            # orphans of the fork that left its group come to this process, which is their subreaper
            while True:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    for orphan in _children():
                        os.kill(orphan, signal.SIGKILL)
                    time.sleep(0.001)
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
        spent = max(self.spent, usage.ru_utime + usage.ru_stime)
        return {"signal": ended_by, "exit": code, "cpu_seconds": spent}


@dataclass(frozen=True)
class Use:
    """What a process has of the machine; of processor time also what the children had that it has waited for."""

    parent: int
    cpu_seconds: float
    threads: int
    memory_bytes: int


def _use(pid: int) -> Use | None:
    """What a process uses, None if there is none."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
        # the name in parentheses may hold anything; the words after it begin with the third of proc(5)
        words = [*map(int, stat.read().rpartition(b")")[2].split()[1:])]
        return Use(words[0], sum(words[10:14]) / TICKS, words[16], words[20] * PAGE)
    return None


def _processes() -> dict[int, Use]:
    """Every process."""
    listed = map(int, filter(str.isdigit, os.listdir("/proc")))
    return {pid: use for pid in listed if (use := _use(pid)) is not None}


def _children() -> list[int]:
    """The processes whose parent is this one; none is reaped meanwhile, so no id can change hands."""
    return [pid for pid, use in _processes().items() if use.parent == os.getpid()]


def _below() -> frozenset[int]:
    """A fork and all it has started, those who left it included: they come to this process."""
    all_of = _processes()
    below = {os.getpid()}
    while fresh := {pid for pid, use in all_of.items() if use.parent in below} - below:
        below |= fresh
    return frozenset(below - {os.getpid()})


def _memory(level: int) -> tuple[str, ...]:
    """File systems in memory that are the sandbox's own: what lies in them counts as what it holds."""
    return ("/tmp", "/dev") if level == 2 else ()


def _held(path: str) -> int:
    """The bytes in a file system."""
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize

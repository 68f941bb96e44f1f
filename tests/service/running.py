"""A running `vetgate up` for tests: on free ports, in a home of its own, and nothing of it left afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tasks.sandbox.prctl import PR_SET_PDEATHSIG, prctl
from tests.databases import with_fixed_seeds
from vetgate.shape import Blob

START_SECONDS, STOP_SECONDS = 400.0, 40.0
PORTS = ("PREFECT", "MLFLOW", "RECEIVER", "GATE")
# what the shell that runs the tests may have set
OWN = ("VETGATE_", "PREFECT_", "MLFLOW_", "NO_PROXY", "no_proxy")
# where no proxy is: what asks one for a server of this host gets no answer
PROXY = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy"), "http://127.0.0.1:9")


@dataclass(frozen=True)
class Service:
    """A service that is up: what it said of itself, and what commands and parts of it are set to."""

    home: Path
    about: Blob
    given: dict[str, str]
    process: subprocess.Popen[str]
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command that uses this service."""
        return self.given | self.about["environment"]

    def vetgate(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command in a process of its own."""
        code = "import sys; from flows.cli.commands import main; sys.exit(main())"
        return self.run(sys.executable, "-c", code, *map(str, arguments))

    def check(self) -> subprocess.CompletedProcess[str]:
        """`vetgate up --check --json`."""
        return self.run(sys.executable, "-m", "flows.cli.service", "up", "--check", "--json")

    def run(self, *line: str) -> subprocess.CompletedProcess[str]:
        """Any command, set to this service."""
        return subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=300)

    def pid(self, part: str) -> int:
        """The process of a part: prefect, mlflow, receiver, gate, vet-worker or gate-worker."""
        return int((self.home / "run" / f"{part}.pid").read_text())

    def kill(self, part: str) -> int:
        """End a part with SIGKILL; its process id, which will be another when it is back."""
        killed = self.pid(part)
        os.kill(killed, signal.SIGKILL)
        return killed

    def until_healthy(self, seconds: float = START_SECONDS) -> None:
        """Wait until every part is."""
        healthy, why = lambda: self.check().returncode == 0, lambda: self.check().stdout + tail(self.log)
        until_true(healthy, seconds, why, pause=2.0)


@contextmanager
def running_service(home: Path, **environment: str) -> Iterator[Service]:
    """`vetgate up` in this home with these variables besides; asserts at its end that it left no process."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(OWN)}
    ports = {f"VETGATE_{name}_PORT": str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    given = own | PROXY | ports | {"VETGATE_HOME": str(home)} | environment
    if not home.exists():
        with_fixed_seeds(home)
    log = home / "up.log"
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.service", "up", "--json"],
            env=given,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            # tests that are killed clean nothing up
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    try:
        assert process.stdout is not None
        with killed_after(process, START_SECONDS):
            line = process.stdout.readline()
        assert line, tail(log)
        yield Service(home, json.loads(line), given, process, log)
    finally:
        stop(process, home)


def stop(process: subprocess.Popen[str], home: Path) -> None:
    """Stop the service, unless it has ended, and assert that nothing of it is left."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()
        assert_nothing_left(home)


def assert_nothing_left(home: Path, seconds: float = 20.0) -> None:
    """Every process that was set to this home, or started with it, is gone soon."""
    until_true(lambda: not left_of(home), seconds, lambda: f"still there: {left_of(home)}")


def left_of(home: Path) -> list[str]:
    """The processes whose environment or command line names this home, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
            if process.pid != os.getpid() and any(str(home) in word for word in words):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.Error:
            continue
    return found


def until_true(happened: Callable[[], bool], seconds: float, say: Callable[[], str], *, pause: float = 0.2) -> None:
    """Wait until something has happened; fails with what `say` says when it has not."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, say()
        time.sleep(pause)


def free_ports(count: int) -> list[int]:
    """Ports that no process listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


@contextmanager
def killed_after(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """End a process that takes too long, so that a reader of its output meets an end."""
    import threading

    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def tail(log: Path, lines: int = 60) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

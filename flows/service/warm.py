"""A process that has imported what flow runs need, and forks for each: a run then starts in no time.

It listens on a socket of its worker. `flows/service/launch.py`, which the worker starts for a run, hands in environment
and standard streams; the fork becomes the run, and the launcher ends as the run does. This process has one thread, no
event loop, no connection and no flow of its own, so that nothing of one run reaches the next. It ends with the worker
that started it, and every run ends with it.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import random
import runpy
import secrets
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tasks.program import plain_logs
from tasks.sandbox.prctl import PR_SET_PDEATHSIG, prctl
from vetgate.shape import Blob

# what a run imports on its way, besides the flow itself
IMPORTS = (
    "prefect.engine",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect._internal.metrics",
    "mlflow.tracking",
    "mlflow.entities",
    "mlflow.entities.model_registry",
    "mlflow.exceptions",
    "sqlalchemy.exc",
    "flows.vetting.result",
    "tasks.report.page",
    "tasks.data.reference",
    "tasks.vetting.prepare",
    "tasks.store.directory",
)
ROOT = Path(__file__).resolve().parent.parent.parent
REQUEST = struct.Struct("!I")
MOST_BYTES = 1 << 22
STREAMS = 3
CREDENTIALS = struct.Struct("3i")


class WarmProcess:
    """The warm process as its worker sees it, for flows that are named as `module.function`; it starts at once."""

    def __init__(self, flows: Iterable[str]) -> None:
        self._flows = sorted(flows)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start one, unless it runs."""
        if self._runs():
            return
        # no path: a home may lie deeper than the name of a socket can be long; who asks is checked by its user
        self.name = f"vetgate-{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{self.name}")
            listener.listen(64)
            modules = {flow.rpartition(".")[0] for flow in self._flows}
            line = [
                sys.executable,
                "-m",
                "flows.service.warm",
                str(listener.fileno()),
                str(os.getpid()),
                *sorted(modules),
            ]
            # a thread of OpenBLAS or of Arrow's allocator would be lost in a fork
            quiet = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
            self._process = subprocess.Popen(
                line, env=os.environ | quiet, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()]
            )

    @property
    def pid(self) -> int:
        """The process that runs now, or ran last."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End it, and every run with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def command(self) -> str:
        """What the worker runs for a flow run."""
        launcher = str(Path(__file__).with_name("launch.py"))
        return shlex.join([sys.executable, "-I", "-S", launcher, self.name, str(ROOT), sys.executable])


def main() -> None:
    """Import, serve, and in a fork be the run."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        return
    listener = socket.socket(fileno=int(sys.argv[1]))
    _import(sys.argv[3:])
    # Ctrl-C is meant for the worker, which ends its runs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = Warm(listener).serve()
    if request is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _be(request)


def _import(flows: Iterable[str]) -> None:
    """Import what runs need; raises RuntimeError if that leaves a thread, which a fork would lack."""
    from tasks.mlflow.client import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    gc.disable()
    for module in (*flows, *IMPORTS):
        importlib.import_module(module)
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise RuntimeError(f"expected one thread in a process that forks, got {threads}; see what an import starts")
    gc.enable()
    gc.collect()
    # keeps the collector of a fork from touching, and so copying, every page it shares
    gc.freeze()


class Warm:
    """The requests of launchers and the forks that they became."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        # by descriptor: the connection of a fork's launcher, and the process id behind a pidfd
        self._asking: dict[int, tuple[socket.socket, int]] = {}
        self._running: dict[int, tuple[int, int]] = {}
        self._poller = select.poll()
        self._poller.register(listener, select.POLLIN)

    def serve(self) -> Blob | None:
        """Fork for every request; returns its request in a fork, and None when the listener is closed."""
        while True:
            for fd, event in self._poller.poll():
                if fd == self._listener.fileno():
                    if event & ~select.POLLIN:
                        return None
                    if (request := self._accept()) is not None:
                        return request
                elif fd in self._running:
                    self._ended(fd)
                elif fd in self._asking:
                    self._signalled(fd)

    def _accept(self) -> Blob | None:
        connection, _ = self._listener.accept()
        try:
            given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
            if (uid := CREDENTIALS.unpack(given)[1]) != os.getuid():
                raise PermissionError(f"user {uid}")
            connection.settimeout(10)
            request, streams = _received(connection)
        except (OSError, ValueError):
            # such a caller is no launcher of ours, or is gone
            connection.close()
            return None
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            self._leave(connection)
            for fd, stream in enumerate(streams):
                os.dup2(stream, fd)
                os.close(stream)
            return request
        for stream in streams:
            os.close(stream)
        ended = os.pidfd_open(pid)
        self._asking[connection.fileno()] = connection, pid
        self._running[ended] = pid, connection.fileno()
        for fd in (connection.fileno(), ended):
            self._poller.register(fd, select.POLLIN)
        return None

    def _leave(self, connection: socket.socket) -> None:
        """In a fork: keep nothing of those who ask."""
        connection.close()
        self._listener.close()
        for other, _ in self._asking.values():
            other.close()
        for ended in self._running:
            os.close(ended)

    def _signalled(self, fd: int) -> None:
        """Pass on the signals that the launcher got; a launcher that is gone takes its run along."""
        connection, pid = self._asking[fd]
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        with suppress(ProcessLookupError):
            for number in numbers or bytes([signal.SIGKILL]):
                os.kill(pid, number)
        if not numbers:
            self._close(fd)

    def _ended(self, ended: int) -> None:
        pid, fd = self._running.pop(ended)
        self._poller.unregister(ended)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        if fd in self._asking and self._asking[fd][1] == pid:
            with suppress(OSError):
                self._asking[fd][0].sendall(REQUEST.pack(status))
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._poller.unregister(fd)
        self._asking.pop(fd)[0].close()


def _received(connection: socket.socket) -> tuple[Blob, list[int]]:
    """A request and the standard streams for it; raises ValueError on anything else."""
    streams = array.array("i")
    head, ancillary, _, _ = connection.recvmsg(REQUEST.size, socket.CMSG_SPACE(STREAMS * streams.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            streams.frombytes(data[: len(data) - len(data) % streams.itemsize])
    try:
        (length,) = REQUEST.unpack(head)
        if len(streams) != STREAMS or length > MOST_BYTES:
            raise ValueError("no request")
        body = bytearray()
        while len(body) < length and (chunk := connection.recv(length - len(body))):
            body += chunk
        request: Blob = json.loads(body)
        return request, list(streams)
    except (ValueError, struct.error, OSError) as error:
        for stream in streams:
            os.close(stream)
        raise ValueError(f"expected a request of flows/service/launch.py, got {error}") from error


def _be(request: Blob) -> None:
    """Be the run that a launcher asked for, in this fresh fork: what `python -m prefect.engine` does."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    plain_logs()
    # a fork inherits the state of every generator
    random.seed()
    import numpy as np
    from prefect.context import SettingsContext, get_settings_context
    from prefect.settings.models.root import Settings

    np.random.seed()
    sys.argv = ["prefect.engine"]
    # it is run as a program, which others have imported as a module
    sys.modules.pop("prefect.engine", None)
    # the settings that were read at the import are those of the worker's environment, not of this run's
    with SettingsContext(profile=get_settings_context().profile, settings=Settings()):
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

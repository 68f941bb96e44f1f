"""Prefect for one command: its settings, and a server of our own where none is configured."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tasks.environment import settle
from vetgate.errors import StoreError

STARTUP_SECONDS = 300.0
# what a server that lives for one command need not do
LIGHT = {"PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false"}


class LocalServer:
    """A Prefect server in a child process; `start` returns at once, `ready` waits until it answers."""

    def __init__(self, home: Path, seconds: float) -> None:
        self._home, self._seconds = home, seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._url = ""

    def start(self) -> None:
        """Start the child and point this process's Prefect at it."""
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            self._url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
            with (self._home / "server.log").open("ab") as log:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "flows.service.server", str(listener.fileno())],
                    env=LIGHT | environment | {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_UI_ENABLED": "0"},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(listener.fileno(),),
                    # Ctrl-C is for the command, which still has to tell the server how its runs ended
                    start_new_session=True,
                )
        os.environ["PREFECT_API_URL"] = self._url
        atexit.register(self.stop)

    def ready(self) -> None:
        """Wait until the server answers; raises StoreError when it does not come up."""
        until = time.monotonic() + self._seconds
        while self._child is not None and self._child.poll() is None and time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=until - time.monotonic()) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        ended = None if self._child is None else self._child.poll()
        self.stop()
        log = self._home / "server.log"
        if ended is not None:
            raise StoreError(f"expected the embedded Prefect server to come up, got its end with {ended}; see {log}")
        raise StoreError(
            f"expected the embedded Prefect server to answer within {self._seconds:.0f} s, got no answer; this host is "
            f"busy: run the command again later, or set VETGATE_START_SECONDS to more; its log is {log}"
        )

    def stop(self) -> None:
        """End the child; called at exit, after Prefect has sent what it still held."""
        if self._child is None:
            return
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None


_server: LocalServer | None = None


def configure(home: Path) -> None:
    """Set what Prefect reads from the environment, before it is first imported; what the user has set stays."""
    settle()
    where = home / "prefect"
    for key, value in {
        "PREFECT_HOME": str(where),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(int(STARTUP_SECONDS)),
        # its console repeats every expected error as a traceback; the server keeps the full log
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(key, value)


def start(home: Path, seconds: float = STARTUP_SECONDS) -> None:
    """Configure Prefect and, where no server is named, begin to start one, which has so long; once a process."""
    global _server
    configure(home)
    if _server is None and "PREFECT_API_URL" not in os.environ:
        try:
            Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
            _server = LocalServer(Path(os.environ["PREFECT_HOME"]), seconds)
            _server.start()
        except OSError as error:
            raise StoreError(f"expected to write in {home}, got {error.strerror}; set VETGATE_HOME") from error


def ready() -> None:
    """Wait for the server that `start` started, if it started one."""
    if _server is not None:
        _server.ready()

"""`vetgate up`: the whole service on one machine, as ordinary processes that honcho starts, shows and ends."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
from honcho.manager import Manager
from honcho.printer import Printer

from flows.service.check import check, databases
from flows.service.keeper import end_all
from flows.service.parts import Part, client_environment, parts
from flows.service.urls import gate_url, is_ours, mlflow_url, prefect_url, receiver_url
from tasks.sandbox.prctl import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from tasks.settings import Settings
from tasks.vetting.intake import seeds_of
from tasks.vetting.signed_results import vetter_key
from vetgate.errors import StoreError
from vetgate.formats.plain_text import without_secrets
from vetgate.shape import Blob

WATCH_SECONDS = 1.0
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def up(settings: Settings, announce: Callable[[Blob], None]) -> int:
    """Run the service until a signal ends it, or a part of it cannot be kept running; its exit code.

    `announce` is told once, when every part is healthy. What the parts print goes to stderr.
    """
    started = parts(settings)
    with _alone(settings):
        _make_secrets(settings)
        _check_ports(settings, started)
        # however a part and its keeper end: what they leave behind becomes a child of this process
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        # honcho forks a process for each part, which would outlive us with no reader of its output
        os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        manager = Manager(Printer(sys.stderr))
        folder = settings.home / "run"
        for part in started:
            environment = dict(part.environment)
            manager.add_process(
                part.name, part.supervised(os.getpid(), folder), env=environment, cwd=str(settings.home)
            )
        ended = threading.Event()
        watch = threading.Thread(
            target=_watch, args=(settings, len(started), announce, ended), name="watch", daemon=True
        )
        watch.start()
        try:
            manager.loop()
        finally:
            ended.set()
            end_all()
            (folder / "service.json").unlink(missing_ok=True)
    if manager.returncode in STOPPED:
        return 0
    print("error: a part of the service could not be kept running; the rest was stopped", file=sys.stderr)
    return 2


def description(settings: Settings) -> Blob:
    """Where everything is reached, and the variables with which a command uses it."""
    return {
        "pid": os.getpid(),
        "prefect": prefect_url(settings),
        "mlflow": mlflow_url(settings),
        "receiver": receiver_url(settings),
        "gate": gate_url(settings),
        "store": settings.store,
        "databases": databases(),
        "environment": client_environment(settings),
    }


def _watch(settings: Settings, count: int, announce: Callable[[Blob], None], ended: threading.Event) -> None:
    """Announce the service when it is healthy; and end what belongs to no part any more."""
    since, announced = time.monotonic(), False
    keepers: set[int] = set()
    while not ended.wait(WATCH_SECONDS):
        forked = {child.pid for child in multiprocessing.active_children() if child.pid is not None}
        keepers = keepers or (forked if len(forked) == count else set())
        for orphan in psutil.Process().children() if keepers else ():
            if orphan.pid not in keepers:
                end_all(orphan)
                orphan.kill()
        if not announced and all(part.healthy for part in check(settings)):
            announced = True
            about = description(settings)
            (settings.home / "run" / "service.json").write_text(without_secrets(json.dumps(about)))
            announce(about | {"seconds": round(time.monotonic() - since, 1)})


def _make_secrets(settings: Settings) -> None:
    """Have the key and the secret that vetting workers need, which no part makes where it is told of a gate service."""
    if is_ours(settings, gate_url(settings), settings.gate_port):
        own = settings.model_copy(update={"gate_url": None})
        vetter_key(own)
        seeds_of(own)


def _check_ports(settings: Settings, started: list[Part]) -> None:
    """Raise StoreError when a port that a part listens on is taken: it would be restarted for nothing."""
    ports = {name: getattr(settings, f"{name}_port", None) for name in (part.name for part in started)}
    for name, port in ports.items():
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                variable = f"VETGATE_{name.upper()}_PORT"
                raise StoreError(
                    f"expected {settings.host}:{port} free for {name}, got {error.strerror}; set {variable}"
                ) from error


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold the home: one service in each."""
    try:
        folder = settings.home / "run"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "up.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"expected no service in {settings.home}, got one running; stop it first") from None
            yield
    except OSError as error:
        raise StoreError(f"expected to write in {settings.home}, got {error.strerror}; set VETGATE_HOME") from error

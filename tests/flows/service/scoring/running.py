"""A scoring server on a free port of this machine, in a thread or by `vetgate serve`, and a client for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from torch import Tensor

from flows.service.http.connections import Limits as Connections
from flows.service.http.serving import Server
from flows.service.scoring.app import Limits, Note, scoring_app
from flows.service.scoring.current import Current, Served
from flows.service.scoring.metrics import Metrics
from tests.service.running import OWN, free_ports, killed_after


def comes(state: Callable[[], bool]) -> bool:
    """Whether it comes to be within twenty seconds."""
    until = time.monotonic() + 20
    while not (reached := state()) and time.monotonic() < until:
        time.sleep(0.02)
    return reached


class Running:
    """A server that is up, and what it serves, which a test may change."""

    def __init__(self, what: Served, note: Note, limits: Limits, metrics: Metrics | None = None) -> None:
        self.what, self.error = what, None
        self.metrics = metrics or Metrics([fitted.guard for fitted in what.guarded.package.guards])
        self.current = Current(self.load, self.until)
        application = scoring_app(self.current, self.metrics, note, limits=limits)
        self.port = free_ports(1)[0]
        self.server = Server(application, "127.0.0.1", self.port, Connections(100, 10.0))
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)

    error: Exception | None

    def load(self) -> Served:
        if self.error is not None:
            raise self.error
        return self.what

    def until(self, held: Served) -> datetime | None:
        return self.load().until

    def ask(self, content: Any, **headers: str) -> httpx.Response:
        """POST /invocations with a body as it is, or with a JSON value or images."""
        if isinstance(content, Tensor):
            content = {"inputs": content.tolist()}
        body = content if isinstance(content, bytes | Iterator) else json.dumps(content).encode()
        return self.client.post("/invocations", content=body, headers={"content-type": "application/json", **headers})

    def predictions(self, content: Any) -> list[dict[str, Any]]:
        """What it answers where it answers."""
        response = self.ask(content)
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()["predictions"]
        return found

    def counted(self, name: str, **labels: str) -> float:
        """The value of a counter; 0 where there is none."""
        return self.metrics.registry.get_sample_value(f"vetgate_{name}", labels) or 0.0


@contextmanager
def running(
    what: Served, note: Note = lambda *seen: None, *, limits: Limits | None = None, metrics: Metrics | None = None
) -> Iterator[Running]:
    """It, for as long as the block lasts."""
    made = Running(what, note, limits or Limits(), metrics)
    thread = threading.Thread(target=made.server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not made.server.started:
        assert thread.is_alive() and time.monotonic() < until
        time.sleep(0.01)
    try:
        yield made
    finally:
        made.client.close()
        made.server.should_exit = True
        thread.join(20)


@contextmanager
def serving(
    uri: str, home: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[dict[str, Any], httpx.Client]]:
    """What `vetgate serve` says of itself, and a client for it; it ends by SIGTERM and leaves no process.

    It is set to nothing but its home, or to this environment.
    """
    code = "import sys; from flows.cli.commands import main; sys.exit(main())"
    own = environment or {k: v for k, v in os.environ.items() if not k.startswith(OWN)}
    line = ["serve", uri, "--port", "0", "--json", "--home", str(home), *options]
    process = subprocess.Popen([sys.executable, "-c", code, *line], env=own, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with killed_after(process, 120):
            about = json.loads(process.stdout.readline())
        with httpx.Client(base_url=about["url"], timeout=60, trust_env=False) as client:
            yield about, client
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()

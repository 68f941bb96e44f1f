"""A server on this machine that takes events as Prefect's does, for tests of what is told of."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from vetgate.shape import Blob


@contextmanager
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Blob]]:
    """The events that are sent from here on, each whole."""
    taken: list[Blob] = []

    class Takes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *said: object) -> None:
            """Nothing is printed."""

    server = HTTPServer(("127.0.0.1", 0), Takes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    try:
        yield taken
    finally:
        monkeypatch.delenv("PREFECT_API_URL")
        server.shutdown()
        thread.join()
        server.server_close()

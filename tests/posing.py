"""A server on this machine that answers as a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Silent(BaseHTTPRequestHandler):
    """A handler that prints nothing."""

    def log_message(self, *said: object) -> None:
        """Nothing is printed."""


@contextmanager
def posing(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """URL of a server whose requests the handler answers, until the end."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        thread.join()
        made.server_close()

"""Serve an application on one port, within limits, until a signal ends the process."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from flows.service.http.connections import Limits

# who comes while strangers open many connections waits in it for less than a second
QUEUE = 2048


def serve(application: Starlette, host: str, port: int) -> None:
    """Serve until a signal ends this process."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    # they tell of every request, and of ours to the Prefect server
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with suppress(KeyboardInterrupt):
        Server(application, host, port, Limits.of_this_process()).run()


class Server(uvicorn.Server):
    """A server within limits, whose kernel keeps those waiting that cannot be accepted at once."""

    def __init__(self, application: Starlette, host: str, port: int, limits: Limits) -> None:
        config = uvicorn.Config(
            application,
            host=host,
            port=port,
            http=limits.protocol,  # type: ignore[arg-type]  # called as a class would be
            ws="none",
            loop="asyncio",
            backlog=limits.backlog,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=3,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on these sockets, or where it was told; raises SystemExit where another listens."""
        super().run(sockets or [self.config.bind_socket()])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, which accepts as many at once as may wait, and then let more wait."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.set_inheritable(False)
            listener.listen(QUEUE)

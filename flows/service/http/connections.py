"""The connections of a small server: how many may be open, and how long a client may keep one waiting.

uvicorn closes a connection that is idle after a response, but none on which a request never ends, and asyncio accepts
until no file descriptor is left. Here a connection that waits for its client, to write or to read, waits for so many
seconds, and of too many open ones that which has waited longest gives way. One whose request is complete waits for us,
and stays until it has its answer.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# MLflow sends one delivery at a time, and a few workers ask
MOST_OPEN = 256
SECONDS = 10.0
LOG_SECONDS = 60.0
logger = logging.getLogger("vetgate.service")


@dataclass
class Limits:
    """The most connections of one server, its seconds of patience, and those that wait, longest first."""

    most_open: int = MOST_OPEN
    seconds: float = SECONDS
    waiting: dict[Connection, None] = field(default_factory=dict)
    logged: float = -LOG_SECONDS

    @classmethod
    def of_this_process(cls) -> Limits:
        """Limits that leave three quarters of the file descriptors that this process may have."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(MOST_OPEN if soft == resource.RLIM_INFINITY else max(min(MOST_OPEN, soft // 4), 2))

    @property
    def backlog(self) -> int:
        """How many asyncio may accept before it looks at the first of them."""
        return max(self.most_open // 2, 1)

    def protocol(self, *arguments: Any, **more: Any) -> Connection:
        """One more connection: what uvicorn asks for each that it accepts."""
        return Connection(self, *arguments, **more)


class Connection(H11Protocol):
    """One connection within the limits of its server."""

    def __init__(self, limits: Limits, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, in the place of whoever has waited longest if there are too many."""
        super().connection_made(transport)
        self._settle()
        limits = self._limits
        while len(self.connections) > limits.most_open and limits.waiting:
            if time.monotonic() > limits.logged + LOG_SECONDS:
                limits.logged = time.monotonic()
                logger.warning("%d connections are open: those that wait longest are closed", limits.most_open)
            next(iter(limits.waiting)).give_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; a part of a request gains it no time."""
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless that is here already."""
        super().on_response_complete()
        self._settle()

    def pause_writing(self) -> None:
        """Wait until the client has read."""
        super().pause_writing()
        self._settle()

    def resume_writing(self) -> None:
        """It has."""
        super().resume_writing()
        self._settle()

    def give_up(self) -> None:
        """Close now, with whatever is unsent."""
        self._stop()
        self.connections.discard(self)
        self.transport.abort()

    def _settle(self) -> None:
        cycle = self.cycle
        answering = cycle is not None and not cycle.more_body and not cycle.response_complete
        if answering and not self.flow.write_paused:
            self._stop()
        elif self._deadline is None:
            self._limits.waiting[self] = None
            self._deadline = self.loop.call_later(self._limits.seconds, self.give_up)

    def _stop(self) -> None:
        self._limits.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

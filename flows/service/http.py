"""What the receiver and the gate service share: bodies of limited size, MLflow's deliveries, and serving them."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flows.service.connections import Limits
from tasks.mlflow.webhooks import MAX_BODY_BYTES, Deliveries, Refused, TooLarge
from vetgate.errors import StoreError
from vetgate.shape import Blob

# who comes while strangers open many connections waits in it for less than a second
QUEUE = 2048
Endpoint = Callable[[Request], Any]
logger = logging.getLogger("vetgate.service")


async def body_of(request: Request, limit: int) -> bytes:
    """The body of a request; raises TooLarge before more than `limit` bytes of it are kept."""
    taken = bytearray()
    async for chunk in request.stream():
        taken += chunk
        if len(taken) > limit:
            raise TooLarge(f"expected at most {limit} bytes, got more")
    return bytes(taken)


def deliveries_to(deliveries: Deliveries, handle: Callable[[str, Blob], None]) -> Endpoint:
    """The endpoint that MLflow sends to: `handle` gets what a good delivery is about, "entity.action" and its data."""

    async def endpoint(request: Request) -> Response:
        try:
            body = await body_of(request, MAX_BODY_BYTES)
            await run_in_threadpool(deliveries.take, request.headers, body)
        except Refused as error:
            logger.warning("a delivery was refused with %d: %s", error.status, error)
            return JSONResponse({"error": str(error)}, error.status)
        except StoreError as error:
            # not noted, so not taken: MLflow sends it again
            logger.error("a delivery could not be taken: %s", error)
            return JSONResponse({"error": "try again later"}, 503)
        delivery = _parsed(body)
        if delivery is not None:
            await run_in_threadpool(handle, *delivery)
        return Response(status_code=204)

    return endpoint


def _parsed(body: bytes) -> tuple[str, Blob] | None:
    try:
        blob = json.loads(body)
        data = blob["data"]
        return (f"{blob['entity']}.{blob['action']}", data) if isinstance(data, dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def service(endpoints: Mapping[str, Endpoint], health: Callable[[], Blob] = dict) -> Starlette:
    """The application that answers POST to these paths, and GET /health with what `health` says."""

    async def healthy(request: Request) -> Response:
        return JSONResponse({"status": "ok", **health()})

    async def gone(request: Request, error: Exception) -> Response:
        # uvicorn sends it to nobody
        return Response(status_code=400)

    made = [Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()]
    routes = [Route("/health", healthy, methods=["GET"]), *made]
    return Starlette(routes=routes, exception_handlers={ClientDisconnect: gone})


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

"""Endpoints: bodies of limited size, MLflow's deliveries, and how healthy a service is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks.mlflow.webhooks import MAX_BODY_BYTES, Deliveries, Refused, TooLarge
from vetgate.errors import StoreError
from vetgate.shape import Blob

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
    middleware = [Middleware(OneLength)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={ClientDisconnect: gone})


class OneLength:
    """Refuses a request that tells two lengths, of which a proxy before us may have gone by the other, and closes."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self._application
        if {b"content-length", b"transfer-encoding"} <= {name.lower() for name, _ in scope.get("headers", ())}:
            said = {"error": "expected a length or chunks, got both; send one"}
            answer = JSONResponse(said, 400, headers={"connection": "close"})
        await answer(scope, receive, send)

"""The application: MLflow's scoring protocol over a guarded model, within limits, and metrics for Prometheus.

GET /ping and /health say whether it serves, GET /version the version of MLflow, POST /invocations answers, GET /metrics
counts. Errors are what MLflow's are: `error_code` and `message`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from flows.production.images import images_in, most_bytes
from flows.production.predictions import prediction
from flows.service.http.endpoints import OneLength, body_of
from flows.service.scoring.current import Current, Served
from flows.service.scoring.metrics import Metrics
from tasks.mlflow.webhooks import TooLarge
from vetgate.errors import BadInput
from vetgate.guard.guarded import Answer

JSON = "application/json"
logger = logging.getLogger("vetgate.serve")
# what sees each image that was answered
Note = Callable[[Served, Tensor, Sequence[Answer]], None]


@dataclass(frozen=True)
class Limits:
    """The most images and bytes of one request, the most requests that wait, and how many are worked on at once."""

    images: int = 256
    body: int = 32 << 20
    waiting: int = 32
    at_once: int = 2


@dataclass(frozen=True)
class Refusal(Exception):
    """A request that gets no prediction: the status, MLflow's code, why, and how it is counted."""

    status: int
    code: str
    message: str
    outcome: str = "refused"


class Scoring:
    """Answers requests, a bounded number at once."""

    def __init__(self, current: Current, metrics: Metrics, note: Note, limits: Limits) -> None:
        self._current, self._metrics, self._note, self._limits = current, metrics, note, limits
        self._inside = 0
        self._workers: anyio.CapacityLimiter | None = None

    async def invocations(self, request: Request) -> Response:
        """Predictions for the images of a request."""
        begun = time.perf_counter()
        try:
            outcome, response = "answered", await self._bounded(request)
        except Refusal as refusal:
            outcome, response = refusal.outcome, _error(refusal)
        except ClientDisconnect:
            self._metrics.requests.labels("abandoned").inc()
            raise
        except Exception:
            logger.exception("a request could not be answered")
            outcome = "failed"
            response = _error(Refusal(500, "INTERNAL_ERROR", "expected an answer, got a fault of ours; see the log"))
        self._metrics.requests.labels(outcome).inc()
        self._metrics.seconds.observe(time.perf_counter() - begun)
        return response

    async def _bounded(self, request: Request) -> Response:
        if self._inside >= self._limits.waiting:
            got = f"expected at most {self._limits.waiting} requests at once, got one more; ask again in a second"
            raise Refusal(503, "TEMPORARILY_UNAVAILABLE", got, "busy")
        self._inside += 1
        self._metrics.waiting.inc()
        try:
            served = self._covered()
            _check_type(request)
            limit = most_bytes(served.guarded.shape, self._limits.images, self._limits.body)
            told = request.headers.get("content-length", "0")
            if not told.isdecimal() or len(told) > 18 or int(told) > limit:
                raise _too_large(limit)
            try:
                body = await body_of(request, limit)
            except TooLarge as error:
                raise _too_large(limit) from error
            # of this loop, so made in it
            self._workers = self._workers or anyio.CapacityLimiter(self._limits.at_once)
            return await run_sync(partial(self._answer, body), limiter=self._workers)
        finally:
            self._inside -= 1
            self._metrics.waiting.dec()

    def _answer(self, body: bytes) -> Response:
        # anew, since time has passed
        served = self._covered()
        try:
            x = images_in(body, served.guarded.shape, self._limits.images)
            answers = served.guarded.predict(x)
        except BadInput as error:
            raise Refusal(400, "BAD_REQUEST", str(error)) from error
        self._metrics.answered(answers)
        self._note(served, x, answers)
        told = {"predictions": [prediction(answer, served.classes) for answer in answers]}
        return Response(json.dumps(told, allow_nan=False), media_type=JSON)

    def _covered(self) -> Served:
        served = self._current.get()
        if served is None:
            raise Refusal(503, "TEMPORARILY_UNAVAILABLE", self._current.why, "uncovered")
        return served


def scoring_app(
    current: Current,
    metrics: Metrics,
    note: Note,
    *,
    limits: Limits | None = None,
    close: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application over what is served now; `note` sees every answer, `close` is called at the end."""
    scoring = Scoring(current, metrics, note, limits or Limits())

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        yield
        close()

    async def ping(request: Request) -> Response:
        return Response("\n", 200 if current.get() is not None else 503, media_type=JSON)

    async def mlflow_version(request: Request) -> Response:
        return Response(version("mlflow"), media_type=JSON)

    async def counted(request: Request) -> Response:
        served = current.get()
        metrics.until.set(0 if served is None else served.until.timestamp())
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def gone(request: Request, error: Exception) -> Response:
        # it is sent to nobody
        return Response(status_code=400)

    app = FastAPI(
        openapi_url=None,
        lifespan=alive,
        middleware=[Middleware(OneLength)],
        exception_handlers={ClientDisconnect: gone},
    )
    for path, endpoint in {"/ping": ping, "/health": ping, "/version": mlflow_version, "/metrics": counted}.items():
        app.add_route(path, endpoint, methods=["GET"])
    app.add_route("/invocations", scoring.invocations, methods=["POST"])
    return app


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    kind, _, parameters = given.partition(";")
    encoded = request.headers.get("content-encoding", "identity")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != JSON or charset not in ("", "charset=utf-8") or encoded.lower() != "identity":
        got = f"expected {JSON} in UTF-8 and not compressed, got {given or 'no content type'!r:.100}"
        raise Refusal(415, "INVALID_PARAMETER_VALUE", f"{got}, {encoded!r:.40}; send JSON")


def _too_large(limit: int) -> Refusal:
    got = f"expected at most {limit} bytes, got more; send fewer images at once"
    return Refusal(413, "REQUEST_LIMIT_EXCEEDED", got)


def _error(refusal: Refusal) -> Response:
    headers = {"retry-after": "1"} if refusal.status == 503 else {}
    return JSONResponse({"error_code": refusal.code, "message": refusal.message}, refusal.status, headers)

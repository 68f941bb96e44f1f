"""The gate as a service, one warm process in the gate zone: it decides, one request at a time, and watches aliases.

`python -m flows.service.gate` serves it; with `--separated` its attestations say that the caller is not the user of
the gate, which only the operator who starts them can know. POST /decide wants the bearer token in VETGATE_GATE_TOKEN;
POST /mlflow takes MLflow's signed webhook about an alias of prod.<name>, which has reconcile look at that name.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import sys
import threading
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flows.gate.decide import answer, make_ready
from flows.service.http.endpoints import Endpoint, body_of, deliveries_to, service
from flows.service.http.serving import serve
from flows.service.webhooks import Webhooks
from tasks.environment import settle
from tasks.mlflow.webhooks import ALIAS_CREATED, ALIAS_DELETED, Deliveries, TooLarge
from tasks.program import ended
from tasks.secret_file import secret_at
from tasks.settings import Settings, load_settings
from vetgate.shape import Blob

MAX_REQUEST_BYTES = 4 << 20
MODEL = re.compile(r"prod\.([a-z0-9][a-z0-9._-]{0,62})")
logger = logging.getLogger("vetgate.gate")


class Reconciler(threading.Thread):
    """Looks at one name after the other; a name that is told of many times while it waits is looked at once."""

    def __init__(self, reconcile: Callable[[str], object]) -> None:
        super().__init__(name="reconcile", daemon=True)
        self._reconcile, self._waiting, self._changed = reconcile, dict[str, None](), threading.Condition()

    def notify(self, name: str) -> None:
        """Have it look at this name from now on; what it is looking at already it looks at once more."""
        with self._changed:
            self._waiting[name] = None
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                name = next(iter(self._waiting))
                del self._waiting[name]
            try:
                self._reconcile(name)
            except Exception:
                # the schedule looks at every name again
                logger.exception("prod.%s could not be reconciled now", name)


def gate_service(settings: Settings, *, separated: bool = False) -> Starlette:
    """The application: POST /decide, POST /mlflow, GET /health; MLflow is told where to send its webhooks."""
    from flows.production.reconcile import reconcile

    reconciler = Reconciler(lambda name: reconcile(settings, name))
    reconciler.start()

    def handle(event: str, data: Blob) -> None:
        found = MODEL.fullmatch(str(data.get("name")))
        if found and event in (ALIAS_CREATED, ALIAS_DELETED):
            reconciler.notify(found[1])

    seen = Deliveries(secret_at(settings.webhook_secret), settings.home / "webhooks" / "gate.db")
    webhooks = Webhooks(settings)
    webhooks.start()
    endpoints = {"/decide": decisions(settings, separated), "/mlflow": deliveries_to(seen, handle)}
    return service(endpoints, lambda: {"webhooks": webhooks.registered})


def decisions(settings: Settings, separated: bool) -> Endpoint:
    """The endpoint that answers what `flows.gate.decide` answers, to holders of the token."""
    token, turn = secret_at(settings.gate_token), threading.Lock()

    def decide(request: Blob) -> Blob:
        with turn:
            return answer(settings, request, separated=separated)

    async def endpoint(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return _error("expected the gate's token, got none or another; set VETGATE_GATE_TOKEN", "StoreError", 401)
        try:
            blob = json.loads(await body_of(request, MAX_REQUEST_BYTES))
        except TooLarge as error:
            return _error(str(error), "StoreError", 413)
        except (ValueError, RecursionError):
            blob = None
        if not isinstance(blob, dict):
            return _error("expected a JSON object, got something else; ask with flows.gate.client", "StoreError", 400)
        answered = await run_in_threadpool(decide, blob)
        return JSONResponse(answered, 422 if "error" in answered else 200)

    return endpoint


def _error(message: str, kind: str, status: int) -> Response:
    return JSONResponse({"error": message, "kind": kind}, status)


def main() -> None:
    """Serve it where the settings say."""
    settle()
    settings = load_settings()
    make_ready(settings)
    application = gate_service(settings, separated="--separated" in sys.argv[1:])
    serve(application, settings.host, settings.gate_port)


if __name__ == "__main__":
    sys.exit(ended(main))

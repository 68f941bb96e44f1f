"""Serve a model of production behind its guards: verified before it listens, and again while it serves."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from flows.production.guarded import GuardedModel, guarded_load
from flows.production.serving import covered_now, read_uri
from flows.service.http.connections import Limits as Connections
from flows.service.http.serving import QUEUE, Server
from flows.service.scoring.aftermath import Aftermath
from flows.service.scoring.app import scoring_app
from flows.service.scoring.current import EVERY_SECONDS, Current, Served
from flows.service.scoring.metrics import Metrics
from tasks.settings import Settings
from vetgate.errors import StoreError
from vetgate.guard.guarded import Action
from vetgate.shape import Blob
from vetgate.trust import attest
from vetgate.trust.strict_json import time_text

PORT = 8482


def serve_model(
    uri: str,
    settings: Settings,
    announce: Callable[[Blob], None],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    action: Action | None = None,
    every: float = EVERY_SECONDS,
) -> None:
    """Serve the model at models:/prod.NAME@ALIAS or /VERSION until a signal ends this process.

    `announce` is told of it once it listens; `every` is how many seconds pass until it is asked again whether it is
    covered. Raises as `flows.production.guarded.guarded_load`, and StoreError where another listens on the port.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    current = Current(lambda: load(uri, settings, action), lambda held: covered_until(uri, settings, held), every=every)
    served = current.get()
    assert served is not None
    metrics = Metrics([fitted.guard for fitted in served.guarded.package.guards])
    aftermath = Aftermath(settings, metrics)

    def close() -> None:
        current.close()
        aftermath.close()

    application = scoring_app(current, metrics, aftermath.note, close=close)
    with listening(host, port) as listener:
        current.keep_asking()
        aftermath.start()
        announce(about(uri, served, listener))
        with suppress(KeyboardInterrupt):
            Server(application, host, port, Connections.of_this_process()).run([listener])


def load(uri: str, settings: Settings, action: Action | None) -> Served:
    """The model behind its guards, as it is served; raises as `guarded_load`."""
    return served_as(guarded_load(uri, settings, action=action))


def served_as(found: GuardedModel) -> Served:
    """What was loaded, as it is served."""
    coverage = found.coverage
    return Served(
        name=coverage.promotion.name,
        version=coverage.promotion.version,
        manifest=coverage.manifest,
        attestation=attest.digest(coverage.attestation.envelope),
        until=coverage.until,
        guarded=found.guarded,
        classes=found.names,
        rate=sum(found.rates.values()),
    )


def covered_until(uri: str, settings: Settings, held: Served) -> datetime | None:
    """Until when what is served is covered; None where that is another version or another verdict by now."""
    _, version, coverage = covered_now(uri, settings)
    same = (version, attest.digest(coverage.attestation.envelope)) == (held.version, held.attestation)
    return coverage.until if same else None


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, on any free port for 0; raises StoreError where none can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # only where it says so does asyncio send an answer at once, and not 40 ms later
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(QUEUE)
    except (OSError, OverflowError) as error:
        listener.close()
        raise StoreError(f"expected to listen on {host}:{port}, got {error}; name another --port") from error
    return listener


def about(uri: str, served: Served, listener: socket.socket) -> Blob:
    """What is served, and where."""
    host, port = listener.getsockname()[:2]
    return {
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
        "model": read_uri(uri).model,
        "version": served.version,
        "manifest_sha256": served.manifest,
        "until": time_text(served.until),
        "action": served.guarded.action.value,
        "guards": [fitted.guard for fitted in served.guarded.package.guards],
        "false_rejection_rate": served.rate,
    }

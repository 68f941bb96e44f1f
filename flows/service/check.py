"""What of the service is healthy, asked from outside: over HTTP, and with a write into the store."""

from __future__ import annotations

import functools
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flows.service.parts import POOLS
from flows.service.urls import gate_url, mlflow_url, prefect_url, receiver_url
from tasks.settings import Settings
from tasks.store.base import Changed
from tasks.store.open import open_store
from vetgate.errors import StoreError

if TYPE_CHECKING:
    import httpx

SECONDS = 5.0
PROBE = "probe/written.json"
MODELS = "api/2.0/mlflow/registered-models/search?max_results=1"


@dataclass(frozen=True)
class Health:
    """One part: whether it does its work, and what it says of itself."""

    part: str
    healthy: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def check(settings: Settings) -> Iterator[Health]:
    """Every part, each asked when it is its turn."""
    prefect, mlflow = prefect_url(settings), mlflow_url(settings)
    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    asked: dict[str, Callable[[], str]] = {
        "prefect": lambda: _healthy(f"{prefect}/health", login),
        **{f"{pool} pool": lambda pool=pool: _worker(prefect, pool, login) for pool in POOLS},  # type: ignore[misc]
        "mlflow": lambda: _healthy(f"{mlflow}/health"),
        "receiver": lambda: _healthy(f"{receiver_url(settings)}/health"),
        "gate": lambda: _hears(gate_url(settings)),
        "store": lambda: _written(settings),
        # these two answer from their databases
        "prefect database": lambda: _database(settings, "prefect", lambda: _healthy(f"{prefect}/ready", login)),
        "mlflow database": lambda: _database(settings, "mlflow", lambda: _healthy(f"{mlflow}/{MODELS}")),
    }
    for part, ask in asked.items():
        yield _asked(part, ask)


def databases() -> dict[str, str]:
    """What kind of database each server was given in this environment; sqlite where it was given none."""
    urls = {"prefect": "PREFECT_SERVER_DATABASE_CONNECTION_URL", "mlflow": "MLFLOW_BACKEND_STORE_URI"}
    kinds = {name: urlsplit(os.environ.get(variable, "")).scheme.split("+")[0] for name, variable in urls.items()}
    return {name: kind or "sqlite" for name, kind in kinds.items()}


@functools.cache
def _client(login: str = "") -> httpx.Client:
    """One for all: making one reads every certificate that this machine trusts."""
    import httpx

    name, _, password = login.partition(":")
    return httpx.Client(timeout=SECONDS, trust_env=False, auth=(name, password) if login else None)


def _asked(part: str, ask: Callable[[], str]) -> Health:
    import httpx

    try:
        return Health(part, True, ask())
    except (StoreError, httpx.HTTPError) as error:
        return Health(part, False, str(error) or type(error).__name__)


def _healthy(url: str, login: str = "") -> str:
    _client(login).get(url).raise_for_status()
    return url.partition("?")[0]


def _hears(url: str) -> str:
    """Raises StoreError while the gate could not tell MLflow where to send its webhooks."""
    said = _client().get(f"{url}/health").raise_for_status().json()
    if missing := [name for name, registered in said["webhooks"].items() if not registered]:
        raise StoreError(f"expected MLflow to send webhooks, got none for {', '.join(missing)} yet; see its messages")
    return f"{url}/health"


def _worker(prefect: str, pool: str, login: str) -> str:
    """The worker of a pool that was heard of last; raises StoreError when that is too long ago."""
    answer = _client(login).post(f"{prefect}/work_pools/{pool}/workers/filter", json={})
    if answer.status_code == 404:
        raise StoreError("expected a worker, got a server that does not know the pool yet")
    found = answer.raise_for_status().json()
    ages = {}
    for worker in found:
        heard = datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp()
        if time.time() - heard < 3 * float(worker["heartbeat_interval_seconds"] or 30):
            ages[worker["name"]] = time.time() - heard
    if not ages:
        raise StoreError(f"expected a worker heard of lately, got none of {len(found)}; start one")
    return ", ".join(f"{name} heard of {age:.0f} s ago" for name, age in sorted(ages.items()))


def _written(settings: Settings) -> str:
    store, probe = open_store(settings), json.dumps({"probe": uuid.uuid4().hex}).encode()
    if not store.create(PROBE, probe):
        try:
            store.replace(PROBE, probe, if_match=store.etag(PROBE))
        except Changed:
            return f"{settings.store}, being written by others"
    return settings.store


def _database(settings: Settings, server: str, ask: Callable[[], str]) -> str:
    ask()
    try:
        # whoever asks need not have the variables of whoever started it
        kind = json.loads((settings.home / "run" / "service.json").read_text())["databases"][server]
    except (OSError, ValueError, KeyError):
        kind = databases()[server]
    return str(kind)

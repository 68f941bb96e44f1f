"""What is in production as MLflow's database or server says, read without importing MLflow, which takes seconds.

For people who look only: what decides asks MLflow itself. What this does not know how to read, MLflow is asked for.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasks.mlflow.aliases import MODELS, PREFIX, VERSIONS, Aliased, by_version, in_production
from tasks.mlflow.client import ENVIRONMENT, SQLITE
from tasks.settings import Settings
from vetgate.errors import StoreError

# authentication by a plugin, and workspaces, are MLflow's to know
OTHERWISE = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_ENABLE_WORKSPACES", "MLFLOW_WORKSPACE")
WAIT_SECONDS = 30.0
ALIASES = "SELECT name, alias, version FROM registered_model_aliases WHERE workspace = 'default'"
SOURCES = """SELECT v.name, v.version, v.source FROM model_versions v JOIN registered_model_aliases a
    ON a.workspace = v.workspace AND a.name = v.name AND a.version = v.version
    WHERE v.workspace = 'default' AND v.current_stage != 'Deleted_Internal'"""
Aliases = dict[str, dict[str, str]]
Sources = dict[tuple[str, str], str]


def read_production(settings: Settings) -> list[Aliased]:
    """What `in_production` gives; raises StoreError when the registry does not answer."""
    uri = settings.tracking_uri
    if any(os.environ.get(name) for name in OTHERWISE):
        return in_production(settings)
    if uri.startswith(("http://", "https://")):
        return by_version(*_from_server(uri.rstrip("/")))
    if not uri.startswith(SQLITE) or "?" in uri:
        return in_production(settings)
    path = Path(uri.removeprefix(SQLITE))
    if not path.exists():
        return []  # nothing was ever registered
    try:
        return by_version(*_from_database(path))
    except sqlite3.Error:
        # another version's tables, or a fault that MLflow has words for
        return in_production(settings)


def opened(path: Path) -> sqlite3.Connection:
    """MLflow's database, to be read only; raises sqlite3.Error."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=WAIT_SECONDS)


def _from_database(path: Path) -> tuple[Aliases, Sources]:
    with closing(opened(path)) as database:
        # both are read from one state of the database
        database.execute("BEGIN")
        aliases: Aliases = {}
        for name, alias, version in database.execute(ALIASES):
            if name.startswith(PREFIX):
                aliases.setdefault(name, {})[alias] = str(version)
        sources = {(name, str(version)): str(source or "") for name, version, source in database.execute(SOURCES)}
    return aliases, sources


def _from_server(url: str) -> tuple[Aliases, Sources]:
    import httpx

    try:
        with httpx.Client(base_url=f"{url}/api/2.0/mlflow/", **access()) as client:
            names = {"filter": f"name LIKE '{PREFIX}%'", "max_results": MODELS, "order_by": "name ASC"}
            models = {m["name"]: m.get("aliases") or [] for m in _pages(client, "registered-models", names)}
            aliases = {
                name: {item["alias"]: str(item["version"]) for item in found}
                for name, found in models.items()
                if found and name.startswith(PREFIX)
            }
            if not aliases:
                return {}, {}
            versions = {"filter": f"name LIKE '{PREFIX}%'", "max_results": VERSIONS}
            found = _pages(client, "model-versions", versions)
            return aliases, {(v["name"], str(v["version"])): str(v.get("source") or "") for v in found}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        got = str(error).strip() or type(error).__name__
        raise StoreError(f"expected the registry at {url} to answer, got {got.splitlines()[0]}; check it") from error


def _pages(client: Any, what: str, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    token = ""
    while True:
        asked = parameters | ({"page_token": token} if token else {})
        answer = client.get(f"{what}/search", params=asked).raise_for_status().json()
        yield from answer.get(what.replace("-", "_")) or []
        token = answer.get("next_page_token") or ""
        if not token:
            return


def access() -> dict[str, Any]:
    """How the server is reached, by the variables that MLflow reads."""
    import httpx

    given = os.environ
    user, token = given.get("MLFLOW_TRACKING_USERNAME"), given.get("MLFLOW_TRACKING_TOKEN")
    trusted: bool | str = given.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    if given.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        trusted = False
    retries = int(given.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") or ENVIRONMENT["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
    timeout = float(given.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or ENVIRONMENT["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    return {
        "auth": (user, given.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None,
        "headers": {"Authorization": f"Bearer {token}"} if token and not user else {},
        "timeout": timeout,
        "transport": httpx.HTTPTransport(
            verify=trusted, cert=given.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"), retries=retries
        ),
    }

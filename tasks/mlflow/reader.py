"""What is in production, and which names are taken, as MLflow's database or server says.

MLflow, which takes seconds to import, is not. For people who look only: what decides asks MLflow itself. What this does
not know how to read, MLflow is asked for.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tasks.mlflow.aliases import (
    PREFIX,
    Registered,
    all_names,
    as_registered,
    in_production,
    promotable,
    with_aliases,
)
from tasks.mlflow.answers import answer_of, objects, pages, text
from tasks.mlflow.client import ENVIRONMENT
from tasks.mlflow.database import database_at, only_mlflow_knows
from tasks.mlflow.listing import MODELS, VERSIONS, Search, listed
from tasks.settings import Settings
from tasks.sqlite import sqlite_file
from vetgate.errors import StoreError
from vetgate.formats.plain_text import escaped

REACHED_BY = (
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
)
ALIASES = "SELECT name, alias, version FROM registered_model_aliases WHERE workspace = 'default'"
NAMED = """SELECT DISTINCT v.name, v.version, v.source, v.current_stage, v.creation_time, v.storage_location
    FROM model_versions v
    LEFT JOIN registered_model_aliases a ON a.workspace = v.workspace AND a.name = v.name AND a.version = v.version
    WHERE v.workspace = 'default' AND v.current_stage != 'Deleted_Internal'
    AND (a.alias IS NOT NULL OR v.current_stage != 'None')"""
NAMES = "SELECT name FROM registered_models WHERE workspace = 'default'"
FIELDS = ("name", "version", "source", "current_stage", "creation_timestamp")
Aliases = dict[str, dict[str, str]]


def read_production(settings: Settings) -> list[Registered]:
    """What `in_production` gives; raises StoreError when the registry does not answer."""
    uri = settings.tracking_uri
    if only_mlflow_knows():
        return in_production(settings)
    if uri.startswith(("http://", "https://")):
        return _named(*_from_server(uri.rstrip("/")))
    path = sqlite_file(uri)
    if path is None:
        return in_production(settings)
    if not path.exists():
        return []  # nothing was ever registered
    try:
        return _named(*_from_database(path))
    except sqlite3.Error:
        # another version's tables, or a fault that MLflow has words for
        return in_production(settings)


def read_names(settings: Settings) -> list[str]:
    """What `all_names` gives; raises StoreError when the registry does not answer."""
    uri = settings.tracking_uri
    if not only_mlflow_knows():
        if uri.startswith(("http://", "https://")):
            with _server(uri.rstrip("/")) as client:
                return list(dict.fromkeys(text(model.get("name")) for model in listed(_models(client))))
        if (path := sqlite_file(uri)) is not None:
            if not path.exists():
                return []  # nothing was ever registered
            with suppress(sqlite3.Error), database_at(path) as database:
                return [text(name) for (name,) in database.execute(NAMES)]
    return all_names(settings)


def _named(aliases: Aliases, versions: list[Registered]) -> list[Registered]:
    return [item for item in with_aliases(aliases, versions) if item.named]


def _from_database(path: Path) -> tuple[Aliases, list[Registered]]:
    with database_at(path) as database:
        # both are read from one state of the database
        database.execute("BEGIN")
        aliases: Aliases = {}
        for name, alias, version in database.execute(ALIASES):
            if text(name).startswith(PREFIX):
                aliases.setdefault(text(name), {})[text(alias)] = text(version)
        return aliases, [as_registered(*row) for row in database.execute(NAMED) if text(row[0]).startswith(PREFIX)]


def _from_server(url: str) -> tuple[Aliases, list[Registered]]:
    """The aliases, and the versions as far as a search finds them, they are the latest of a stage, or an alias is."""
    which = f"name LIKE '{PREFIX}%'"
    aliases: Aliases = {}
    rows: list[dict[str, Any]] = []
    with _server(url) as client:
        for model in listed(_models(client), which):
            held = objects(model.get("aliases"), "aliases")
            aliases[text(model.get("name"))] = {text(item.get("alias")): text(item.get("version")) for item in held}
            rows += objects(model.get("latest_versions"), "versions")
        aliases = {name: held for name, held in aliases.items() if held and name.startswith(PREFIX)}
        for page in pages(partial(_versions(client), which)):
            rows += page
        found = {(text(row.get("name")), text(row.get("version"))) for row in rows}
        for name, version in ((name, version) for name, held in aliases.items() for version in held.values()):
            if (name, version) not in found and promotable(name.removeprefix(PREFIX), version):
                rows += _version(client, name, version)
        known = [as_registered(*map(row.get, FIELDS)) for row in rows if text(row.get("name")).startswith(PREFIX)]
        named = _named(aliases, known)
        return aliases, [_located(client, item) for item in named]


@contextmanager
def _server(url: str) -> Iterator[Any]:
    """A client of the server's API; what goes wrong with it or with what it answers is a StoreError."""
    import httpx

    try:
        with httpx.Client(base_url=f"{url}/api/2.0/mlflow/", **access()) as client:
            yield client
    except (httpx.HTTPError, ValueError) as error:
        got = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StoreError(f"expected the registry at {url} to answer, got {escaped(got):.300}; check it") from error


def _models(client: Any) -> Search:
    return partial(_page, client, "registered-models", {"max_results": MODELS, "order_by": "name ASC"})


def _versions(client: Any) -> Search:
    return partial(_page, client, "model-versions", {"max_results": VERSIONS})


def _page(
    client: Any, what: str, parameters: dict[str, Any], which: str, token: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    asked = parameters | ({"filter": which} if which else {}) | ({"page_token": token} if token else {})
    answer = answer_of(client, "GET", f"{what}/search", params=asked)
    return objects(answer.get(what.replace("-", "_")), what), text(answer.get("next_page_token"))


def _located(client: Any, item: Registered) -> Registered:
    """The version with where MLflow loads it from."""
    if not promotable(item.name, item.version):
        return item
    asked = {"name": f"{PREFIX}{item.name}", "version": item.version}
    found = _found(client, "model-versions/get-download-uri", asked)
    loads = None if found is None else text(found.get("artifact_uri"))
    return item if loads in (None, item.source) else replace(item, loads=loads)


def _version(client: Any, name: str, version: str) -> list[dict[str, Any]]:
    """The version that is asked for, if there is one."""
    found = _found(client, "model-versions/get", {"name": name, "version": version}) or {}
    return objects([found["model_version"]] if "model_version" in found else None, "a version")


def _found(client: Any, path: str, asked: dict[str, str]) -> dict[str, Any] | None:
    """What the server answers about one thing; None where it has no such thing."""
    import httpx

    try:
        return answer_of(client, "GET", path, params=asked)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == 404:
            return None
        raise


def access() -> dict[str, Any]:
    """How the server is reached, by the variables that MLflow reads; raises StoreError where one makes no sense."""
    try:
        return _access()
    except (OSError, ValueError) as error:
        got = ", ".join(f"{name}={os.environ[name]}" for name in REACHED_BY if os.environ.get(name))
        raise StoreError(
            f"expected certificates that are there and numbers, got {got} ({error}); correct it"
        ) from error


def _access() -> dict[str, Any]:
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

"""A client of the MLflow registry: its database made whole on first use, its errors ours, its telemetry off."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

from tasks.file_lock import locked_within
from tasks.mlflow.answers import Guarded
from tasks.settings import Settings, location
from tasks.sqlite import sqlite_file
from tasks.templates import make
from vetgate.errors import StoreError
from vetgate.formats.plain_text import escaped

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

# read when mlflow is imported, or at its calls; what the user has set stays
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # --json prints one object there and nothing else
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}

# longer than any upload of a model takes
WAIT_SECONDS = 1800.0


def prepare(settings: Settings) -> None:
    """Import MLflow and make its database; worth seconds when it is done while other processes work."""
    with registry(settings):
        pass


@contextmanager
def registry(settings: Settings) -> Iterator[MlflowClient]:
    """The client, held by one process of this home at a time; raises StoreError for whatever MLflow cannot do."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if settings.s3_endpoint:
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", settings.s3_endpoint)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    uri = settings.tracking_uri
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with (settings.home / "registry.lock").open("wb") as lock:
            _hold(lock)
            file = sqlite_file(uri)
            if file is not None and not file.exists():
                make("mlflow", file)
            yield cast("MlflowClient", Guarded(_unhindered(MlflowClient(uri, uri))))
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = (
            "see that it runs, correct VETGATE_TRACKING_URI, or allow more time by MLFLOW_HTTP_REQUEST_TIMEOUT"
            if uri.startswith(("http://", "https://"))
            else "check it and its disk"
        )
        raise StoreError(f"expected the registry at {uri} to answer, got {escaped(first):.300}; {remedy}") from error


def _unhindered(client: Any) -> Any:
    """MLflow's client denies what is tagged as a prompt, which whoever writes the registry can do to any model."""
    # the store is opened by the first question and no sooner
    client.get_registered_model = lambda name: client._get_registry_client().get_registered_model(name)
    client.get_model_version = lambda name, version: client._get_registry_client().get_model_version(name, version)
    client.search_registered_models = lambda *given, **asked: (
        client._get_registry_client().store.search_registered_models(*given, **asked)
    )
    client._raise_if_prompt = lambda name: None
    return client


def _hold(lock: IO[bytes]) -> None:
    """Wait until no other process of this home uses the registry; raises StoreError when that takes too long."""
    if not locked_within(lock, WAIT_SECONDS):
        raise StoreError(
            f"expected {lock.name} within {WAIT_SECONDS:g} seconds, got another process that holds it; see with lsof "
            "which one waits for the registry, and end it"
        )


def experiment(client: MlflowClient, settings: Settings, name: str) -> str:
    """The id of the experiment, made on first use; a server keeps artifacts itself, a database keeps them in ours.

    One that was deleted is restored: its name can be given to no other.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    server = by_server(settings)
    where = settings.artifacts if settings.artifacts.startswith("s3://") else Path(settings.artifacts).as_uri()
    return str(client.create_experiment(name, artifact_location=None if server else f"{where}/{name}"))


def own_experiment(client: MlflowClient, settings: Settings, name: str) -> Experiment:
    """The experiment, made on first use, whose artifacts this installation keeps; raises StoreError for another."""
    found = client.get_experiment(experiment(client, settings, name))
    if not is_ours(settings, found.artifact_location):
        raise StoreError(
            f"expected experiment {name} of the registry to keep its artifacts in {settings.artifacts}, got "
            f"{found.artifact_location!r:.200}; rename that experiment, or set VETGATE_ARTIFACTS if it is yours"
        )
    return found


def by_server(settings: Settings) -> bool:
    """Whether the registry is a server, and no database."""
    return settings.tracking_uri.startswith(("http://", "https://"))


def is_ours(settings: Settings, place: object) -> bool:
    """Whether artifacts at a place are in this installation's: who writes the registry can name any other."""
    where = str(place or "")
    try:
        scheme, host = urlsplit(where)[:2]
        own = ("", urlsplit(settings.tracking_uri).netloc.rpartition("@")[2])
        served = by_server(settings) and (scheme == "s3" or (scheme == "mlflow-artifacts" and host in own))
    except ValueError:
        return False
    return is_below(settings, where) or (served and ".." not in unquote(where).split("/"))


def is_below(settings: Settings, place: str) -> bool:
    """Whether a place is below this installation's artifacts themselves."""
    try:
        below = f"{location(place)}/".startswith(f"{settings.artifacts.rstrip('/')}/")
    except ValueError:
        return False
    return below and ".." not in unquote(place).split("/")

"""The MLflow server of `vetgate up`, on its database: MLFLOW_BACKEND_STORE_URI, or a file under the home.

It is what `mlflow server --no-serve-artifacts` serves, in one process: that command keeps a second one, as large, which
does nothing but wait. Artifacts are not passed through it: clients write where the settings say.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from pathlib import Path

from tasks.environment import settle
from tasks.mlflow import client as mlflow_client
from tasks.program import ended
from tasks.secret_file import secret_at
from tasks.settings import Settings, load_settings
from tasks.sqlite import sqlite_file, sqlite_url
from tasks.store.open import open_store


def database(settings: Settings) -> str:
    """The URL of the server's database."""
    return os.environ.get("MLFLOW_BACKEND_STORE_URI") or sqlite_url(settings.home / "mlflow.db")


def source_pattern(settings: Settings) -> str:
    """What the source of every model version must match: below our artifacts, in our quarantine or its vetted copy."""
    artifacts = settings.artifacts
    roots = {artifacts if "://" in artifacts else Path(artifacts).as_uri(), artifacts}
    roots |= {open_store(settings).url(part) for part in ("quarantine", "vetted")}
    below = "|".join(re.escape(root.rstrip("/")) for root in sorted(roots))
    return rf"^(?:{below})/(?!(?:.*/)?\.\.(?:/|$))"


def main() -> None:
    """Serve; the database is made first, whole, where it is a file."""
    settle()
    settings = load_settings()
    where = database(settings)
    if sqlite_file(where) is not None:
        mlflow_client.prepare(settings.model_copy(update={"tracking_uri": where}))
    from cryptography.fernet import Fernet

    # webhooks are signed with a secret that the database holds, and the database is no place for it
    key = secret_at(settings.home / "keys" / "mlflow.fernet", lambda: Fernet.generate_key().decode())
    os.environ.setdefault("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", key)
    os.environ.setdefault("MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX", source_pattern(settings))
    _serve(settings, where)


def _serve(settings: Settings, where: str) -> None:
    import uvicorn
    from mlflow.environment_variables import _MLFLOW_SERVER_BOOT_ID
    from mlflow.server import constants
    from mlflow.server.handlers import initialize_backend_stores

    # how its application is told what the command was given, and that it is a server, which runs no code of its clients
    for variable in (constants.BACKEND_STORE_URI_ENV_VAR, constants.REGISTRY_STORE_URI_ENV_VAR):
        os.environ[variable] = where
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = settings.artifacts
    os.environ[_MLFLOW_SERVER_BOOT_ID.name] = uuid.uuid4().hex
    initialize_backend_stores(where, where, settings.artifacts)
    uvicorn.run(
        "mlflow.server.fastapi_app:app",
        host=settings.host,
        port=settings.mlflow_port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    sys.exit(ended(main))

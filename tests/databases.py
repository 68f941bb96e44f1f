"""Empty databases of MLflow and of Prefect, migrated once and then copied into the homes of tests.

Migrating them takes some ten seconds of a processor, and many a test has a home of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from tasks.mlflow import client as mlflow_client
from tasks.settings import Settings
from tests.cached import made_once

MIGRATIONS = ("sqlalchemy", "alembic")
# a server that came up once: Prefect remembers beside its database what it has entered there
PREFECT = "from pathlib import Path; from flows.vetting import runtime; runtime.start(Path({!r})); runtime.ready()"


def with_fixed_seeds(home: Path) -> Path:
    """A new home whose secret, from which the seeds of an installation come, is always the same: so are verdicts."""
    keys = home / "keys"
    keys.mkdir(mode=0o700, parents=True)
    (keys / "seed.secret").write_bytes(hashlib.sha256(b"the tests, one").digest())
    return home


def with_registry(home: Path) -> Path:
    """A home whose MLflow database is there, and empty."""
    code = [Path(mlflow_client.__file__)]
    return made_once("mlflow", home, _migrate_mlflow, code=code, libraries=("mlflow", *MIGRATIONS))


def with_databases(home: Path) -> Path:
    """A home whose MLflow and Prefect databases are there, and empty."""
    made_once(
        "prefect", home / "prefect", _migrate_prefect, code=[], recipe=PREFECT, libraries=("prefect", *MIGRATIONS)
    )
    return with_registry(home)


def _migrate_mlflow(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as room:
        settings = Settings(home=Path(room))
        mlflow_client.prepare(settings)
        shutil.move(settings.home / "mlflow.db", folder)


def _migrate_prefect(folder: Path) -> None:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_"))}
    with tempfile.TemporaryDirectory() as room:
        subprocess.run([sys.executable, "-c", PREFECT.format(room)], env=own, check=True, timeout=400)
        with closing(sqlite3.connect(Path(room, "prefect", "prefect.db"))) as database:
            database.execute("pragma wal_checkpoint(truncate)")
        for name in ("prefect.db", "memo_store.toml"):
            if Path(room, "prefect", name).exists():
                shutil.move(Path(room, "prefect", name), folder)

"""MLflow's database where it is a file of ours: asked directly, since MLflow asks it once for each thing."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

# authentication by a plugin, and workspaces, are MLflow's to know
OTHERWISE = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_ENABLE_WORKSPACES", "MLFLOW_WORKSPACE")
WAIT_SECONDS = 30.0


def only_mlflow_knows() -> bool:
    """Whether how the registry is reached is set by what only MLflow's own client reads."""
    return any(os.environ.get(name) for name in OTHERWISE)


def database_at(path: Path) -> closing[sqlite3.Connection]:
    """MLflow's database in a file, to be read only; what goes wrong with it is an error of sqlite3."""
    return closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=WAIT_SECONDS))

"""The parts of the service on one machine: what is run, in which environment, and which secrets each may see.

Where the same programs are started some other way, as in containers, they are given these variables.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.service.urls import gate_url, is_ours, mlflow_url, prefect_url
from tasks.mlflow.client import ENVIRONMENT as MLFLOW
from tasks.settings import Settings

# no file can be there, and none can be made there
WITHHELD = "/dev/null/withheld"
SECRETS = KEY, TOKEN, SECRET, VETTER, SEEDS = (
    "VETGATE_GATE_KEY",
    "VETGATE_GATE_TOKEN",
    "VETGATE_WEBHOOK_SECRET",
    "VETGATE_VETTER_KEY",
    "VETGATE_SEED_SECRET",
)
DATABASES = ("PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_", "MLFLOW_BACKEND_STORE_URI")
VET, GATE = POOLS = ("vet", "gate")

PREFECT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    # a submission is looked for each second: the default of ten is most of the wait for a small model's verdict
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_PREFETCH_SECONDS": "2",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
}
PREFECT_SERVER = {
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    # leases in memory are lost with the server, and what they held would stay taken for ever
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
MLFLOW_SERVER = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # a webhook that was registered a moment ago is heard of a moment later
    "MLFLOW_WEBHOOK_CACHE_TTL": "2",
    # receiver and gate are on this machine; elsewhere they have public names and certificates
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
}


@dataclass(frozen=True)
class Part:
    """One process of the service; `linger` is for how many seconds it outlives the others when all are stopped."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    linger: float = 0.0

    def supervised(self, up: int, folder: Path) -> str:
        """The shell command that keeps it running as long as the process `up` lives."""
        options = ("--name", self.name, "--up", str(up), "--linger", str(self.linger))
        pid_file = ("--pid-file", str(folder / f"{self.name}.pid"))
        keeper = (sys.executable, "-m", "flows.service.keeper", *options, *pid_file)
        return f"exec {shlex.join((*keeper, '--', *self.command))}"


def parts(settings: Settings) -> list[Part]:
    """What `vetgate up` starts; a server that the configuration names elsewhere is not among it."""
    python = (sys.executable, "-m")
    found = []
    if settings.s3_command:
        found.append(Part("s3", ("/bin/sh", "-c", settings.s3_command), _environment(settings), linger=2.0))
    if is_ours(settings, prefect_url(settings), settings.prefect_port):
        found.append(
            Part("prefect", (*python, "flows.service.prefect_server"), prefect_environment(settings), linger=1.5)
        )
    if is_ours(settings, mlflow_url(settings), settings.mlflow_port):
        found.append(Part("mlflow", (*python, "flows.service.mlflow_server"), mlflow_environment(settings), linger=1.5))
    receiver = _environment(settings, KEY, TOKEN, VETTER, SEEDS)
    vetting = _environment(settings, KEY, SECRET)
    found.append(Part("receiver", (*python, "flows.service.receiver"), receiver))
    if is_ours(settings, gate_url(settings), settings.gate_port):
        found.append(Part("gate", (*python, "flows.service.gate"), _environment(settings, VETTER)))
    found.append(Part("vet-worker", (*python, "flows.service.worker", VET), vetting))
    found.append(Part("gate-worker", (*python, "flows.service.worker", GATE), _environment(settings, VETTER, SEEDS)))
    return found


def client_environment(settings: Settings) -> dict[str, str]:
    """The variables with which a command uses this service instead of doing everything itself."""
    given = settings.model_dump(mode="json", exclude={"s3_command"}, exclude_none=True)
    given |= {"tracking_uri": mlflow_url(settings), "gate_url": gate_url(settings)}
    places = {f"VETGATE_{name.upper()}": str(value) for name, value in given.items()}
    return places | {"PREFECT_API_URL": prefect_url(settings)}


def prefect_environment(settings: Settings) -> dict[str, str]:
    """What the Prefect server gets: its database, and nothing of ours."""
    given = _environment(settings, *SECRETS, databases=("PREFECT_",))
    # its pages are written with the server's address in them, and the installation may be read-only
    own = {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(settings.home / "prefect" / "ui")}
    own["PREFECT_SERVER_UI_API_URL"] = prefect_url(settings)
    return {**PREFECT_SERVER, **own, **given}


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """What the MLflow server gets: its database, and nothing of ours."""
    given = _environment(settings, *SECRETS, databases=("MLFLOW_",))
    return {**MLFLOW_SERVER, **given, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


def _environment(settings: Settings, *withheld: str, databases: tuple[str, ...] = ()) -> dict[str, str]:
    """Ours, with the places and addresses of the service; only a server itself learns how its database is reached."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(DATABASES) or k.startswith(databases)}
    inherited.setdefault("PREFECT_HOME", str(settings.home / "prefect"))
    if settings.s3_endpoint:
        inherited.setdefault("MLFLOW_S3_ENDPOINT_URL", settings.s3_endpoint)
    hidden = dict.fromkeys(withheld, WITHHELD)
    return {**MLFLOW, **PREFECT, **inherited, **client_environment(settings), **hidden, "PYTHONUNBUFFERED": "1"}

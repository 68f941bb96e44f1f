"""Put the deployments of prefect.yaml on the Prefect server: what `prefect deploy --all` does, for one work pool.

It is done by the pool's worker, which has imported Prefect anyway, and again only when something in them has changed:
each time anew, their triggers would be away for a moment.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentTriggerTypes
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, ScriptError
from prefect.runner.storage import LocalStorage
from prefect.workers.process import ProcessWorker
from pydantic import TypeAdapter

from vetgate.digest import sha256_json
from vetgate.errors import StoreError
from vetgate.shape import Blob
from vetgate.shipped import DEPLOYMENTS, PACKAGES

TRIGGERS: TypeAdapter[list[DeploymentTriggerTypes]] = TypeAdapter(list[DeploymentTriggerTypes])
logger = logging.getLogger("vetgate.service")


def entries(path: Path = DEPLOYMENTS) -> list[Blob]:
    """The deployments that prefect.yaml lists."""
    try:
        listed: list[Blob] = yaml.safe_load(path.read_text())["deployments"]
    except OSError as error:
        raise StoreError(f"expected deployments in {path}, got {error.strerror}; install vetgate again") from error
    return listed


def own_flows(pool: str, path: Path = DEPLOYMENTS) -> dict[str, str]:
    """The entrypoint of each of the pool's deployments as prefect.yaml names it, and as a module to import."""
    found = [entry["entrypoint"] for entry in entries(path) if entry["work_pool"]["name"] == pool]
    return {given: given.replace(".py:", ".").replace("/", ".") for given in found}


def create_pool(name: str) -> None:
    """Make the work pool, unless it is there."""
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            return


def deploy(pool: str, root: Path = PACKAGES) -> list[str]:
    """Put the pool's deployments on the server; the names of those that were not there as they should be."""
    done = []
    with get_client(sync_client=True) as client:
        for entry in entries():
            if entry["work_pool"]["name"] != pool:
                continue
            try:
                if name := _deploy(client, entry, root):
                    done.append(name)
            except (ImportError, OSError, ScriptError) as error:
                # the others must not wait for it
                logger.error("%s is not deployed: %s", entry["entrypoint"], error)
    return done


def _deploy(client: SyncPrefectClient, entry: Blob, root: Path) -> str | None:
    file = entry["entrypoint"].partition(":")[0]
    wanted = sha256_json({**entry, "root": str(root), "code": (root / file).read_text()})[:16]
    made = _deployment(entry, root, wanted)
    try:
        there = client.read_deployment_by_name(made.full_name)
    except ObjectNotFound:
        there = None
    if there is not None and there.version == wanted:
        return None
    made.apply()
    return made.full_name


def _deployment(entry: Blob, root: Path, version: str) -> RunnerDeployment:
    limit = entry.get("concurrency_limit")
    with contextlib.chdir(root):
        made = RunnerDeployment.from_entrypoint(
            entry["entrypoint"],
            name=entry["name"],
            description=entry["description"],
            version=version,
            parameters=entry.get("parameters", {}),
            tags=entry.get("tags", []),
            schedules=[_schedule(given) for given in entry.get("schedules", [])],
            triggers=[*TRIGGERS.validate_python(entry.get("triggers", []))],
            concurrency_limit=limit and ConcurrencyLimitConfig(**limit),
            work_pool_name=entry["work_pool"]["name"],
            job_variables=entry["work_pool"].get("job_variables", {}),
        )
    # a run's own directory is a temporary one, and the code lies here
    made.storage = LocalStorage(str(root))
    return made


def _schedule(given: Blob) -> DeploymentScheduleCreate:
    cron = CronSchedule(cron=given["cron"], timezone=given["timezone"])
    return DeploymentScheduleCreate(schedule=cron, slug=given["slug"], active=given.get("active", True))

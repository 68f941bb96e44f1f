"""The sweep as a flow of the gate's pool: what it starts are runs on the work pools."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment

from flows.vetting.sweep import sweep
from tasks.settings import Settings, load_settings
from vetgate.errors import StoreError

PAGE = 200
# a run that is about to start for longer than this will never start: its worker died
ABOUT_TO_START = timedelta(minutes=5)


@flow(name="sweep", flow_run_name="sweep", persist_result=True, result_serializer="json")
def sweep_flow() -> dict[str, Any]:
    """Start what events and webhooks missed; fails when a part of it could not be done, after doing the others."""
    done = sweep_service(load_settings())
    if done["errors"]:
        raise StoreError("; ".join(done["errors"]))
    return done


def sweep_service(settings: Settings) -> dict[str, Any]:
    """Sweep, starting what was missed on the Prefect server that the environment names."""
    return sweep(settings, _start, queued=_queued())


def _start(deployment: str, parameters: dict[str, Any], key: str) -> None:
    run_deployment(deployment, parameters=parameters, idempotency_key=key, timeout=0, as_subflow=False)


def _queued() -> set[str]:
    """The manifests whose vetting waits for a worker."""
    found: set[str] = set()
    states = {"type": {"any_": ["SCHEDULED", "PENDING"]}}
    with get_client(sync_client=True) as client:
        for page in range(100):
            runs = client.read_flow_runs(
                flow_run_filter=FlowRunFilter.model_validate({"state": states}),
                deployment_filter=DeploymentFilter.model_validate({"name": {"any_": ["default"]}}),
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
                limit=PAGE,
                offset=page * PAGE,
            )
            for run in runs:
                stuck = (
                    run.state is not None
                    and run.state.is_pending()
                    and run.state.timestamp < datetime.now(UTC) - ABOUT_TO_START
                )
                if not stuck and "manifest_sha256" in run.parameters and "unless_vetted" in run.parameters:
                    found.add(run.parameters["manifest_sha256"])
            if len(runs) < PAGE:
                break
    return found

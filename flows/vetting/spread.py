"""Where the work of one vetting is done: in its own process, or on a Dask cluster, as the policy says.

On Dask every detector is a Prefect task on a worker, and has the blocks of its inversions computed by all of them. A
worker needs the settings of an installation (VETGATE_* in its environment) that name the same store, and the same data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from prefect import flow
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.progress import report_progress
from tasks.settings import Settings
from tasks.vetting.dask.workplaces import case_to_json
from tasks.vetting.inspect import Case
from tasks.vetting.steps import detect_on_dask
from vetgate.errors import NotUnderstood
from vetgate.shape import Blob
from vetgate.verdict.policy import Policy


def runner(policy: Policy, settings: Settings) -> TaskRunner[Any]:
    """Threads of this process; with `spread: dask` the cluster at dask_scheduler, or one of this machine's own."""
    if policy.spread != "dask":
        return ThreadPoolTaskRunner()
    from prefect_dask.task_runners import DaskTaskRunner

    if settings.dask_scheduler is not None:
        return DaskTaskRunner(address=settings.dask_scheduler)
    # a thread each, as a detector keeps a sandbox busy; certificates of its own, as every client of Dask runs code
    local = {"n_workers": os.cpu_count() or 1, "threads_per_worker": 1, "dashboard_address": None, "security": True}
    return DaskTaskRunner(cluster_kwargs={**local, "env": _environment(settings)})


def detect_all(
    policy: Policy, settings: Settings, case: Case, sizes: dict[str, int], methods: Mapping[str, Blob]
) -> tuple[list[Blob], NotUnderstood | None]:
    """The fields of what each of `methods` (name -> parameters) found, all run at once on Dask, in the order given.

    Ends before the first that did not understand what was submitted, with its error.
    """

    @flow(name="detect", task_runner=runner(policy, settings), result_serializer="json", validate_parameters=False)
    def detecting() -> tuple[list[Blob], NotUnderstood | None]:
        running = {}
        for method, params in methods.items():
            report_progress(f"detect {method}", 0)
            running[method] = detect_on_dask.submit(json.dumps(case_to_json(case)), sizes, method, params)
        found: list[Blob] = []
        refused: NotUnderstood | None = None
        for method, future in running.items():
            try:
                answer = future.result()
                found += [answer] if refused is None else []
            except NotUnderstood as error:
                refused = refused or error
            report_progress(f"detect {method}", 1)
        return found, refused

    return detecting()


def _environment(settings: Settings) -> dict[str, str]:
    given = {f"VETGATE_{name.upper()}": value for name, value in settings.model_dump(mode="json").items()}
    return {name: str(value) for name, value in given.items() if value is not None}

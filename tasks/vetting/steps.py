"""The steps of a vetting as Prefect tasks, in the order in which a submission goes through them; flows chain these.

This is the one module of `tasks/` that imports Prefect. What a step leaves is kept by the step itself, in the store
under its own key, so that a run that is started again redoes nothing that had finished; Prefect keeps the same as JSON,
for people. Only what is quick and can be done again without harm is retried by Prefect; the rest waits for the sweep.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.progress import reporting
from tasks.settings import Settings, load_settings
from tasks.store.open import open_store
from tasks.vetting import inspect, intake
from tasks.vetting.dask.spread import detect_spread
from tasks.vetting.dask.workplaces import case_from_json
from tasks.vetting.inspect import Case
from tasks.vetting.intake import Record
from tasks.vetting.prepare import prepare
from tasks.vetting.repair import Yardstick, report_figures, run_repair
from tasks.vetting.results import RepairRecord
from vetgate.formats.submission import Submission
from vetgate.shape import Blob


@task(
    name="take in",
    task_run_name="take in",
    retries=1,
    retry_delay_seconds=1,
    persist_result=True,
    result_serializer="json",
    cache_policy=NO_CACHE,
)
def take_in(settings: Settings, record: Record, case: Case) -> None:
    """The vetting's own copy of the submitted files, checked against the manifest."""
    with reporting("take in"):
        # a first try may have left half of them
        shutil.rmtree(case.directory, ignore_errors=True)
        intake.fetch(open_store(settings), record, Path(case.directory))


@task(
    name="reference data",
    task_run_name="reference data",
    persist_result=True,
    result_serializer="json",
    cache_policy=NO_CACHE,
)
def reference_data(settings: Settings, submission: Submission, sizes: dict[str, int]) -> Blob:
    """The fields of the Data that a submission is vetted on."""
    with reporting("reference data"):
        return prepare(settings, submission, sizes)


@task(
    name="inspect and load",
    task_run_name="inspect and load",
    persist_result=True,
    result_serializer="json",
    cache_policy=NO_CACHE,
)
def inspect_and_load(settings: Settings, record: Record, case: Case) -> Blob:
    """What the sandbox says of the model, every file read to its last byte; raises NotUnderstood or SandboxError.

    Or only `written`: the manifest of what vetgate wrote in its place, and took in.
    """
    with reporting("inspect and load"):
        return inspect.look(settings, record, case)


@task(
    name="first look",
    task_run_name="first look",
    persist_result=True,
    result_serializer="json",
    cache_policy=NO_CACHE,
)
def look_first(settings: Settings, case: Case) -> Blob:
    """What the model does on trusted images, as JSON; raises NotUnderstood or SandboxError."""
    with reporting("first look"):
        return inspect.first_look_of(settings, case).to_json()


@task(
    name="detect", task_run_name="detect {method}", persist_result=True, result_serializer="json", cache_policy=NO_CACHE
)
def detect(settings: Settings, case: Case, method: str, params: Blob) -> Blob:
    """The fields of what one detector Found, which is in the store when this ends."""
    with reporting(f"detect {method}"):
        return inspect.run_detector(settings, case, method, params)


@task(name="detect", task_run_name="detect {method}", result_serializer="json", cache_policy=NO_CACHE)
def detect_on_dask(case: str, sizes: dict[str, int], method: str, params: Blob) -> Blob:
    """`detect` on a Dask worker, with the blocks of its inversions computed by all of them; `case` is JSON."""
    from distributed import worker_client

    # leaves this worker's thread to the blocks that it waits for
    with worker_client() as client:

        def submit(work: Any, job: str) -> Any:
            # a pure call with the same job would be answered from an earlier one
            return client.submit(work, job, pure=False)

        settings = load_settings()
        return detect_spread(settings, case_from_json(settings, json.loads(case)), sizes, method, params, submit)


@task(name="guard", task_run_name="guard", persist_result=True, result_serializer="json", cache_policy=NO_CACHE)
def guard(fit: Callable[[], Blob]) -> Blob:
    """The guards that were fitted for serving the model, by whatever fits them, as JSON."""
    with reporting("guard"):
        return fit()


@task(name="decide", task_run_name="decide", persist_result=True, result_serializer="json", cache_policy=NO_CACHE)
def decide(ask: Callable[[Blob], Blob], request: Blob) -> Blob:
    """The gate's ruling, by whatever asks the gate; that signs once, so that asking twice is for people to choose."""
    with reporting("decide"):
        return ask(request)


@task(
    name="repair", task_run_name="repair {method}", persist_result=True, result_serializer="json", cache_policy=NO_CACHE
)
def repair(settings: Settings, case: Case, method: str, params: Blob, evidence: list[Blob], by: Yardstick) -> Blob:
    """The record of one repair, measured on the images for choosing, as JSON."""
    with reporting(f"repair {method}"):
        return run_repair(settings, case, method, params, evidence, by).to_json()


@task(
    name="re-evaluate",
    task_run_name="re-evaluate",
    persist_result=True,
    result_serializer="json",
    cache_policy=NO_CACHE,
)
def re_evaluate(case: Case, chosen: RepairRecord, directory: Path) -> Blob:
    """The figures of the chosen repair on the test images, as JSON."""
    with reporting("re-evaluate"):
        return report_figures(case, chosen, directory).to_json()


@task(
    name="report and register",
    task_run_name="report and register",
    persist_result=True,
    result_serializer="json",
    cache_policy=NO_CACHE,
)
def register(publish: Callable[[], Blob]) -> Blob:
    """The result with its report written and recorded in MLflow, by whatever publishes it."""
    with reporting("report and register"):
        return publish()

"""Run a vetting in this process: everything that is slow to start is started first, all at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flows.gate.client import gate
from flows.params import load_params
from flows.production.automatic import promote_all_due
from flows.vetting import runtime
from flows.vetting.result import refused
from flows.vetting.submit import refuse_alike
from flows.vetting.sweep import sweep, tried
from tasks.importing import importing
from tasks.mlflow import client as mlflow_client
from tasks.mlflow.heads import publish_head
from tasks.progress import report_progress
from tasks.settings import Settings, load_settings
from tasks.store.open import open_store
from tasks.vetting import intake
from tasks.vetting.conversion import vetted_in_place_of
from tasks.vetting.intake import Record
from tasks.vetting.results import NotTakenIn, Result
from tasks.vetting.workplace import cool, warm
from vetgate.errors import NotUnderstood, StoreError, VetgateError
from vetgate.shape import Blob
from vetgate.verdict.policy import load_policy
from vetgate.verdict.reasons import of_error


def vet_locally(directory: Path) -> Result | NotTakenIn:
    """Submit a directory and vet it with the settings of the environment."""
    started = time.monotonic()
    settings = load_settings()
    try:
        # what is wrong with the directory or the configuration is said before anything is started
        load_policy(settings.policy)
        load_params(settings.params)
        record = intake.take(settings, directory, check_name=partial(refuse_alike, settings))
    except NotUnderstood as error:
        return refused(directory.resolve().name, of_error(error), time.monotonic() - started)
    return run(settings, record)


def run(settings: Settings, record: Record) -> Result:
    """Vet a submission that was taken in."""
    # what has a result is most likely asked for once more: then no model is opened, and MLflow has it already
    manifest = vetted_in_place_of(settings, record.id) or record.id
    ready = start_all(settings, fresh=next(iter(open_store(settings).list(f"results/{manifest}/")), None) is None)
    try:
        report_progress("start", 0)
        with importing():
            from flows.vetting.vet import vet

        ready()
        report_progress("start", 1)
        result = Result.from_json(vet(record.id))
        if settings.gate_url is None:
            publish_head(settings)
        return result
    finally:
        cool()


def sweep_locally(settings: Settings) -> Blob:
    """Vet and take in, one after another in this process, whatever waits; for installations without a service."""
    todo: list[tuple[str, Blob]] = []
    done = sweep(settings, lambda deployment, parameters, key: todo.append((deployment, parameters)))
    if not todo:
        return done
    ready = start_all(settings)
    try:
        ready()
        for deployment, parameters in todo:
            tried(done, partial(_done_here, settings, deployment, parameters))
    finally:
        cool()
    done["promoted"] += promote_all_due(settings, done["errors"].append)
    return done


def _done_here(settings: Settings, deployment: str, parameters: Blob) -> None:
    """One thing that a sweep starts, in this process; raises StoreError that says for what."""
    from flows.vetting.submitted import take_version
    from flows.vetting.vet import vet

    what = " ".join(str(value) for value in parameters.values() if isinstance(value, str))
    try:
        if deployment == "take-registered/default":
            taken = take_version(settings, **parameters)
            if "refused" in taken:
                return
            parameters = {"manifest_sha256": taken["manifest_sha256"], "unless_vetted": True}
        vet(**parameters)
    except VetgateError as error:
        raise StoreError(f"{what}: {error}") from error


def start_all(settings: Settings, *, fresh: bool = True) -> Callable[[], None]:
    """Begin to start the Prefect server, the sandbox, the gate and MLflow; returns before they are up.

    What it returns waits until the Prefect server is known and MLflow is imported. No flow may run before: Prefect's
    client imports SQLAlchemy, and so does MLflow, and of two threads that import its modules at once one may find them
    half done. If nothing `fresh` is to be vetted, sandbox and MLflow are left until they are needed.
    """
    runtime.start(settings.home, settings.start_seconds)
    if fresh:
        warm(settings)
    gate(settings)
    importing_mlflow = threading.Thread(target=_import_mlflow, args=(settings,), name="mlflow", daemon=True)
    if fresh:
        importing_mlflow.start()

    def ready() -> None:
        runtime.ready()
        if fresh:
            importing_mlflow.join()

    return ready


def _import_mlflow(settings: Settings) -> None:
    try:
        mlflow_client.prepare(settings)
    except VetgateError:
        # the task that needs it says so in its turn
        return

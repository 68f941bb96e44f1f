"""What MLflow holds of a vetting: one run, and a version of thirdparty.<name> for what came in.

Tags are a cache for people to read. Nothing is decided by them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.mlflow.client import is_ours, own_experiment, registry
from tasks.mlflow.listing import every_version, model_at
from tasks.mlflow.submitted import note, noted
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.intake import fetch, read_record
from tasks.vetting.results import Result
from vetgate.digest import sha256_json
from vetgate.formats.plain_text import escaped
from vetgate.formats.submission import Submission

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

VETTINGS = "vetgate"
MANIFEST_TAG = "vet.manifest_sha256"
# of what vetgate wrote in place of what came in
WRITTEN_TAG = "vet.written_sha256"


def record_vetting(
    settings: Settings,
    submission: Submission,
    manifest_sha256: str,
    result: Result,
    files: Mapping[str, Path],
    *,
    vetting: str = "",
) -> str:
    """The id of the one run of this vetting: parameters, a metric per method and number, `files` by artifact path.

    `vetting` is what tells two vettings of the same bytes apart, such as the attestation's key. Recording the same
    vetting again changes nothing, and the same bytes have one version of thirdparty.<name>, however often they are
    vetted.
    """
    given = {"attestation": result.attestation, "verdict": result.verdict, "p_value": result.p_value}
    same = {"vet.vetting": sha256_json({"manifest": manifest_sha256, "vetting": vetting, **given})}
    with registry(settings) as client:
        run = run_with(client, settings, VETTINGS, same, f"{submission.name} {result.verdict}")
        run_id = str(run.info.run_id)
        if run.info.status == "RUNNING":
            _log_result(client, run_id, submission, result)
            with tempfile.TemporaryDirectory() as room:
                for name, path in files.items():
                    target = Path(room, name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
                client.log_artifacts(run_id, room)
        came_in = submission.submitted or manifest_sha256
        version = _version_of_what_came_in(client, settings, submission, came_in, run_id)
        tags = {MANIFEST_TAG: came_in, "vet.verdict": result.verdict, "vet.run_id": run_id}
        if came_in != manifest_sha256:
            tags[WRITTEN_TAG] = manifest_sha256
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
            client.set_model_version_tag(version.name, str(version.version), key, value)
        if run.info.status == "RUNNING":
            client.set_terminated(run_id, "FINISHED")
    return run_id


def _log_result(client: MlflowClient, run_id: str, submission: Submission, result: Result) -> None:
    from mlflow.entities import Metric, Param

    stated = {**submission.model_dump(mode="json", exclude_none=True), "classes": submission.n_classes}
    stated |= {"calibrated": result.calibrated, "suspects": [*result.suspects], "sandbox_level": result.sandbox_level}
    stated |= {"weights_sha256": result.weights_sha256}
    numbers = {"p_value": result.p_value, "seconds": result.seconds}
    if (look := result.first_look) is not None:
        numbers |= {"first_look.accuracy": look.accuracy, "first_look.accuracy_under_cause": look.under_cause}
        stated |= {"first_look.cause": look.cause}
    for method in result.methods:
        seen = {"statistic": method.statistic, "alarmed": method.alarmed, "seconds": method.seconds}
        numbers |= {f"{method.name}.{key}": value for key, value in seen.items()}
    if (repair := result.repair) is not None:
        pairs = {"clean_accuracy": repair.clean_accuracy, "attack_success": repair.attack_success}
        for what, pair in {**pairs, "robust_accuracy": repair.robust_accuracy}.items():
            numbers |= dict(zip((f"repair.{what}.before", f"repair.{what}.after"), pair, strict=True))
    for guard in () if result.guards is None else result.guards.guards:
        measured = {"false_rejections": guard.false_rejections, "detection": guard.detection, "chosen": guard.chosen}
        costs = {"alone": guard.alone, "batch": guard.batch}
        measured |= {f"{what}.slowdown": cost.slowdown for what, cost in costs.items() if cost is not None}
        numbers |= {f"guard.{guard.name}.{key}": value for key, value in measured.items()}
    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        params=[Param(key, escaped(str(value))) for key, value in stated.items() if value is not None],
        metrics=[Metric(k, float(value), now, 0) for k, value in numbers.items() if value is not None],
    )


def _version_of_what_came_in(
    client: MlflowClient, settings: Settings, submission: Submission, manifest_sha256: str, run_id: str
) -> ModelVersion:
    model = f"thirdparty.{submission.name}"
    registered_model(client, model)
    store = open_store(settings)
    source = store.url(f"quarantine/{manifest_sha256}")
    if not source.startswith("s3://"):
        source = f"{client.get_run(run_id).info.artifact_uri}/submission"
    made = None
    for version in versions(client, model, manifest_sha256):
        # every client can tag a version; what was taken in from it is noted in the store
        if _noted(store, version) == manifest_sha256:
            return version
        if version.source == source:
            made = made or version
    # one that was made just before a crash has no note yet
    made = made or _made(client, store, model, source, manifest_sha256, run_id)
    note(store, model, str(made.version), {"manifest_sha256": manifest_sha256})
    return made


def _made(
    client: MlflowClient, store: Store, model: str, source: str, manifest_sha256: str, run_id: str
) -> ModelVersion:
    """A version whose bytes lie in the store's quarantine, or in the run where a server refuses such a source."""
    if not source.startswith("s3://"):
        with tempfile.TemporaryDirectory() as room:
            submitted = Path(room, "submission")
            # no other file than was submitted, whatever lies beside it
            fetch(store, read_record(store, manifest_sha256), submitted)
            client.log_artifacts(run_id, str(submitted), "submission")
    return client.create_model_version(model, source=source, run_id=run_id, tags={MANIFEST_TAG: manifest_sha256})


def _noted(store: Store, version: ModelVersion) -> str | None:
    try:
        found: str | None = noted(store, version.name, str(version.version)).get("manifest_sha256")
    except KeyError:
        return None
    return found


def run_with(client: MlflowClient, settings: Settings, where: str, tags: Mapping[str, str], name: str) -> Run:
    """The run with these tags that did not fail, or a new one; one whose process died is taken up again."""
    home = str(own_experiment(client, settings, where).experiment_id)
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    for run in client.search_runs([home], wanted, order_by=["attributes.start_time DESC"]):
        if run.info.status in ("RUNNING", "FINISHED") and is_ours(settings, run.info.artifact_uri):
            return run
    return client.create_run(home, tags=dict(tags), run_name=name)


def registered_model(client: MlflowClient, model: str) -> None:
    """Make the registered model, unless it is there."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def versions(client: MlflowClient, model: str, manifest_sha256: str) -> list[ModelVersion]:
    """The versions of a registered model that say by their tag that they are these bytes."""
    known = model_at(client, model)
    found = every_version(client, [known] if known else [], f"name = '{model}'")
    return [version for version in found if version.tags.get(MANIFEST_TAG) == manifest_sha256]

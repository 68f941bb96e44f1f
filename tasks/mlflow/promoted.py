"""What MLflow is told of a promotion: a run, a version of prod.<name> with exactly the vetted bytes, and its alias.

A version that is found by its tag is believed by its bytes only, because every writer of the registry can tag.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.mlflow.answers import OddAnswer
from tasks.mlflow.artifacts import fetch_place, place_of
from tasks.mlflow.client import is_ours, own_experiment, registry
from tasks.mlflow.listing import loaded_from
from tasks.mlflow.vettings import MANIFEST_TAG, registered_model, run_with, versions
from tasks.records.promotions import Taken
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting.intake import MAX_BYTES, MAX_FILES
from vetgate.errors import StoreError, VetgateError
from vetgate.formats.manifest import Manifest, hash_directory

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

PROMOTIONS = "vetgate-promotions"
MODEL = "model"

MOST_TAKEN = 100

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Promoted:
    """One version of prod.<name> and where its bytes lie."""

    version: str
    run_id: str
    source: str
    previous: str | None


# (version, where the alias was), before the alias is set; raises Taken
Record = Callable[[Promoted, str | None], None]


def register_promoted(
    settings: Settings,
    name: str,
    manifest: Manifest,
    directory: Path,
    *,
    alias: str,
    tags: Mapping[str, str],
    documents: Mapping[str, Path],
    record: Record,
    on_step: OnStep,
) -> Promoted:
    """A version of prod.<name> with exactly these bytes and tags, and then, last, the alias on it.

    `directory` holds the bytes, which were checked; with an S3 store the version points at the vetted copy there.
    `documents` go beside them, into folders named by their keys. `record` keeps what the version stands for, before the
    alias is set. Each step may be the last before a crash: running it again finds what is there, checks it and goes on.
    """
    model, fresh = f"prod.{name}", {**tags, MANIFEST_TAG: manifest.sha256}
    with registry(settings) as client:
        taken: set[str] = set()
        for _ in range(MOST_TAKEN):
            version = _promoted_version(client, settings, model, manifest, taken)
            if version is None:
                run_id, source = _promotion_run(client, settings, name, manifest, directory, documents, on_step)
                registered_model(client, model)
                version = client.create_model_version(model, source=source, run_id=run_id, tags=fresh)
                on_step("version registered")
            for key, value in fresh.items():
                client.set_model_version_tag(model, str(version.version), key, value)
            current = {a: str(v) for a, v in client.get_registered_model(model).aliases.items()}
            made = Promoted(str(version.version), str(version.run_id), str(version.source), current.get("previous"))
            try:
                record(made, current.get(alias))
            except Taken:
                # a registry that was made anew counts from 1 again, and that number has stood for other bytes
                taken.add(made.version)
                continue
            previous = _set_alias(client, model, alias, made.version, current, on_step)
            return replace(made, previous=previous)
    raise StoreError(
        f"expected a version of {model} that was never promoted, got {MOST_TAKEN} that were; see the ledger"
    )


def _set_alias(
    client: MlflowClient, model: str, alias: str, version: str, current: Mapping[str, str], on_step: OnStep
) -> str | None:
    """Put the alias on the version, keeping an old champion as previous; which version is previous now."""
    old, previous = current.get(alias), current.get("previous")
    if alias == "champion" and old is not None and old != version:
        client.set_registered_model_alias(model, "previous", old)
        previous = old
        on_step("old champion kept as previous")
    client.set_registered_model_alias(model, alias, version)
    on_step("alias set")
    return previous


def _promoted_version(
    client: MlflowClient, settings: Settings, model: str, manifest: Manifest, taken: Collection[str]
) -> ModelVersion | None:
    """The version that is loaded as these bytes and whose number is not taken; what a tag claims is nothing."""
    vetted = open_store(settings).url(f"vetted/{manifest.sha256}")
    for version in versions(client, model, manifest.sha256):
        number = str(version.version)
        if number in taken or loaded_from(client, model, number) != version.source:
            continue
        if vetted.startswith("s3://"):
            if version.source == vetted:
                return version
        elif _is_promotion(client, settings, version) and version.source == _bytes_of_run(
            client, settings, str(version.run_id), manifest
        ):
            return version
    return None


def _is_promotion(client: MlflowClient, settings: Settings, version: ModelVersion) -> bool:
    """Whether a version points into a run of promotions: no other place is asked for bytes, wherever it may be."""
    from mlflow.exceptions import MlflowException

    home = own_experiment(client, settings, PROMOTIONS)
    try:
        run = client.get_run(str(version.run_id)).info
    except (MlflowException, OddAnswer):
        return False
    root = str(run.artifact_uri)
    below = root.startswith(f"{str(home.artifact_location).rstrip('/')}/")
    same = str(run.experiment_id) == str(home.experiment_id)
    return same and below and is_ours(settings, root) and version.source == f"{root}/{MODEL}"


def _promotion_run(
    client: MlflowClient,
    settings: Settings,
    name: str,
    manifest: Manifest,
    directory: Path,
    documents: Mapping[str, Path],
    on_step: OnStep,
) -> tuple[str, str]:
    """The id of a run with the promoted bytes and the source that a version of them has."""
    vetted = open_store(settings).url(f"vetted/{manifest.sha256}")
    tags = {"vet.name": name, MANIFEST_TAG: manifest.sha256}
    # twice, because a run of an earlier try may hold what does not belong there
    for _ in range(2):
        run_id = str(run_with(client, settings, PROMOTIONS, tags, f"prod.{name}").info.run_id)
        on_step("promotion run made")
        for artifact, path in documents.items():
            client.log_artifact(run_id, str(path), artifact)
        source: str | None = vetted
        if not vetted.startswith("s3://"):
            # a server refuses paths outside a run's artifacts, so the bytes go there, and are hashed there
            client.log_artifacts(run_id, str(directory), MODEL)
            on_step("bytes logged")
            source = _bytes_of_run(client, settings, run_id, manifest)
        client.set_terminated(run_id, "FINISHED" if source else "FAILED")
        on_step("promotion run finished")
        if source:
            return run_id, source
    raise StoreError(f"expected run {run_id} to hold the vetted bytes, got others; check the disk of the artifacts")


def _bytes_of_run(client: MlflowClient, settings: Settings, run_id: str, manifest: Manifest) -> str | None:
    """Where a run keeps the promoted bytes, if they are exactly these."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as room:
        try:
            where = f"{place_of(client, run_id)}/{MODEL}"
            found = fetch_place(settings, where, Path(room, MODEL), manifest.digests, most=manifest.size)
            there = hash_directory(found, max_bytes=MAX_BYTES, max_files=MAX_FILES)
        except (VetgateError, MlflowException, OSError):
            return None
    return where if there == manifest else None

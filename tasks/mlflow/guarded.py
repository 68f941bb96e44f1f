"""What MLflow is told of a guarded model: a version of guarded.<name>, and the aliases that prod.<name> has.

None of it is believed by anyone: whoever loads such a version checks the attestation that lies in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.mlflow.aliases import aliases_of
from tasks.mlflow.artifacts import place_of
from tasks.mlflow.client import registry
from tasks.mlflow.listing import every_version, model_at
from tasks.mlflow.vettings import registered_model
from tasks.settings import Settings
from vetgate.formats.model_name import MODEL_NAME

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

GUARDED = "guarded."
# which version of prod.<name> it is the guarded form of
PROMOTED_TAG = "vet.promoted_version"


def register_guarded(
    settings: Settings,
    name: str,
    directory: Path,
    *,
    run_id: str,
    promoted: str,
    folder: str,
    tags: Mapping[str, str],
    on_step: Callable[[str], None],
) -> str:
    """The version of guarded.<name> with the files of this directory, in `folder` of a run; it gets the aliases too.

    `promoted` is the version of prod.<name> that it belongs to. Each step may be the last before a crash: done again,
    it writes the same bytes to the same place, finds the version, and goes on.
    """
    model = f"{GUARDED}{name}"
    with registry(settings) as client:
        source = f"{place_of(client, run_id)}/{folder}"
        client.log_artifacts(run_id, str(directory), folder)
        on_step("guarded files logged")
        registered_model(client, model)
        wanted = {**tags, PROMOTED_TAG: promoted}
        found = next((v for v in _versions(client, model) if v.source == source and v.tags == wanted), None)
        if found is None:
            found = client.create_model_version(model, source=source, run_id=run_id, tags=wanted)
            on_step("guarded version registered")
        _follow(client, name)
        on_step("guarded aliases set")
        return str(found.version)


def follow_aliases(settings: Settings, names: Collection[str]) -> None:
    """Move the aliases of guarded.<name> to where those of prod.<name> are, for each of the names."""
    # what has another name was never promoted
    known = sorted(filter(MODEL_NAME.fullmatch, names))
    if known:
        with registry(settings) as client:
            for name in known:
                _follow(client, name)


def _follow(client: MlflowClient, name: str) -> None:
    """Put every alias of prod.<name> on the guarded form of its version, the newest; take off what has none."""
    model = f"{GUARDED}{name}"
    known = model_at(client, model)
    if known is None:
        return
    forms = {str(v.tags.get(PROMOTED_TAG)): str(v.version) for v in _versions(client, model)}
    wanted = {alias: forms[number] for alias, number in aliases_of(client, name).items() if number in forms}
    held = {alias: str(number) for alias, number in known.aliases.items()}
    for alias, number in wanted.items():
        if held.get(alias) != number:
            client.set_registered_model_alias(model, alias, number)
    for alias in held.keys() - wanted.keys():
        client.delete_registered_model_alias(model, alias)


def _versions(client: MlflowClient, model: str) -> list[ModelVersion]:
    """The versions of a registered model, oldest first."""
    known = model_at(client, model)
    found = every_version(client, [known] if known else [], f"name = '{model}'")
    return sorted(found, key=lambda version: int(version.version))

"""Models registered in MLflow as thirdparty.<name>: found, copied out of MLflow's artifacts, and noted once.

A version is a submission when its source is a directory with submission.yaml among the artifacts of its own run. What
became of each is noted in the store: MLflow's tags can be written by all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.mlflow.answers import text
from tasks.mlflow.artifacts import fetch_place, place_of
from tasks.mlflow.client import is_below, is_ours, registry
from tasks.mlflow.listing import every_model, every_version
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, NotUnderstood
from vetgate.formats.model_name import MODEL_NAME
from vetgate.formats.plain_text import escaped

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

PREFIX = "thirdparty."
MODEL = re.compile(rf"thirdparty\.{MODEL_NAME.pattern}")
ADVICE = "log the directory with submission.yaml as artifacts of a run and register runs' artifact URI as the source"


@dataclass(frozen=True)
class Supplied:
    """One version of thirdparty.<name> and the directory that it names."""

    model: str
    version: str
    source: str
    run_id: str


def unknown_versions(settings: Settings) -> Iterator[Supplied]:
    """Every version of a thirdparty model that nothing is noted of."""
    with registry(settings) as client:
        found = list(every_version(client, every_model(client, PREFIX), f"name LIKE '{PREFIX}%'"))
        # notes come after versions: read before them, they would lack those of whatever was registered meanwhile
        known = set(open_store(settings).list("registered/"))
        for version in found:
            model = text(version.name)
            if note_key(model, str(version.version)) not in known and MODEL.fullmatch(model):
                yield _registered(version)


def download(settings: Settings, model: str, version: str, room: Path) -> Path:
    """The submission directory of a version, copied to the new `room`; raises BadSubmission or NotUnderstood."""
    with registry(settings) as client:
        found = _registered(client.get_model_version(model, version))
        _check_place(settings, client, found)
        return fetch_place(settings, found.source, room)


def work_of(model: str, version: str) -> str:
    """Under what name a version is leased to whoever takes it in; raises BadSubmission for a name of none."""
    if not MODEL.fullmatch(model) or not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise BadSubmission(
            f"expected thirdparty.<name> and a version, got {model!r} and {version!r}; name it by our rules"
        )
    return f"{model}-{version}"


def tag(settings: Settings, model: str, version: str, tags: dict[str, str]) -> None:
    """Say on the version, for people, what became of it."""
    with registry(settings) as client:
        for key, value in tags.items():
            client.set_model_version_tag(model, version, key, escaped(value)[:1000])


def is_noted(store: Store, model: str, version: str) -> bool:
    """Whether it is known what became of a version."""
    return store.exists(note_key(model, version))


def note(store: Store, model: str, version: str, what: dict[str, Any]) -> None:
    """Keep, once, what became of a version: {"manifest_sha256"} or {"refused"}."""
    store.create(note_key(model, version), canonical_json(what))


def noted(store: Store, model: str, version: str) -> dict[str, Any]:
    """What `note` kept; raises KeyError."""
    found: dict[str, Any] = json.loads(store.read(note_key(model, version)))
    return found


def note_key(model: str, version: str) -> str:
    """Where the note on a version lies."""
    return f"registered/{model}/{version}.json"


def _registered(version: ModelVersion) -> Supplied:
    return Supplied(version.name, str(version.version), str(version.source or ""), str(version.run_id or ""))


def _check_place(settings: Settings, client: MlflowClient, found: Supplied) -> None:
    """Refuse a source that is not among the artifacts of its own run, in a place of this installation."""
    if not found.run_id:
        raise NotUnderstood(f"expected a version with a run, got the source {found.source!r} without one; {ADVICE}")
    from mlflow.exceptions import MlflowException

    try:
        root = place_of(client, found.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise NotUnderstood(
            f"expected a version with a run, got {found.run_id!r:.80}, which is none; {ADVICE}"
        ) from error
    inside = found.source.removeprefix(f"{root}/").strip("/")
    if not found.source.startswith(f"{root}/") or not inside or ".." in inside.split("/"):
        raise NotUnderstood(f"expected a source below {root}, got {found.source!r}; {ADVICE}")
    # a run may name any path of this machine, any server or any bucket as its place
    served = found.source.startswith("mlflow-artifacts:") and is_ours(settings, found.source)
    if not served and not is_below(settings, found.source):
        raise NotUnderstood(f"expected artifacts that the tracking server keeps, got {root!r}; {ADVICE}")

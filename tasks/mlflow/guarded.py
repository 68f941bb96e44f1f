"""What MLflow is told of a guarded model: a version of guarded.<name>, and the aliases that prod.<name> has.

None of it is believed by anyone: whoever loads such a version checks the attestation that lies in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import events
from tasks.mlflow.aliases import aliases_of
from tasks.mlflow.answers import text
from tasks.mlflow.artifacts import place_of
from tasks.mlflow.client import registry
from tasks.mlflow.guarded_forms import PROMOTED_TAG, Forms, folder_of, lies_at
from tasks.mlflow.listing import NUMBER, every_model, every_version, model_at
from tasks.mlflow.vettings import registered_model
from tasks.records.ledger_state import ledger_state
from tasks.settings import Settings
from vetgate.errors import Denied, StoreError, VetgateError
from vetgate.formats.model_name import MODEL_NAME
from vetgate.shape import Blob
from vetgate.trust.keys import utc_now

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)
GUARDED = "guarded."


@dataclass(frozen=True)
class Moved:
    """An alias of guarded.<name> that was on another version than it belongs on; `to` is None where it was deleted.

    `bypass` says that it was on a version that is no form of what the gate promoted.
    """

    name: str
    alias: str
    version: str
    to: str | None
    bypass: bool

    @property
    def model(self) -> str:
        """The registered model."""
        return f"{GUARDED}{self.name}"

    def to_json(self) -> Blob:
        """Its fields and the model."""
        return asdict(self) | {"model": self.model}


def register_guarded(
    settings: Settings,
    name: str,
    directory: Path,
    *,
    run_id: str,
    promoted: str,
    attestation: str,
    tags: Mapping[str, str],
    on_step: Callable[[str], None],
) -> str:
    """The version of guarded.<name> with the files of this directory, in a folder of a run; it gets the aliases too.

    `promoted` is the version of prod.<name> that it belongs to, `attestation` the digest of the verdict in the
    directory. Each step may be the last before a crash: done again, it writes the same bytes to the same place, finds
    the version, and goes on.
    """
    model, folder = f"{GUARDED}{name}", folder_of(attestation)
    with registry(settings) as client:
        source = f"{place_of(client, run_id)}/{folder}"
        client.log_artifacts(run_id, str(directory), folder)
        on_step("guarded files logged")
        registered_model(client, model)
        wanted = {**tags, PROMOTED_TAG: promoted}
        same = (v for v in _versions(client, model) if v.tags == wanted and lies_at(client, v, source))
        found = next(same, None)
        if found is None:
            found = client.create_model_version(model, source=source, run_id=run_id, tags=wanted)
            on_step("guarded version registered")
        _follow(client, settings, name)
        on_step("guarded aliases set")
        return str(found.version)


def follow_aliases(
    settings: Settings, name: str | None = None, *, broken: bool = False
) -> tuple[list[Moved], list[VetgateError]]:
    """Move the aliases of every guarded model, or of guarded.<name>, to where those of prod.<name> are.

    What was moved, with an alarm for each bypass, and an error for each model of which that is not known. Where the
    ledger is `broken` an alias is only taken off, where prod.<name> has it no more. Raises StoreError when the registry
    does not answer.
    """
    with registry(settings) as client:
        one = None if name is None else model_at(client, f"{GUARDED}{name}")
        known = every_model(client, GUARDED) if name is None else [one] if one else []
    moved: list[Moved] = []
    errors: list[VetgateError] = []
    for each in [name] if known and name else [text(model.name).removeprefix(GUARDED) for model in known]:
        try:
            with registry(settings) as client:
                moved += _follow(client, settings, each, broken=broken)
        except (StoreError, Denied) as error:
            errors.append(error)
    for item in moved:
        to = "unset" if item.to is None else f"on version {item.to}"
        logger.warning("%s@%s was on version %s and is %s now", item.model, item.alias, item.version, to)
        if item.bypass:
            events.emit(events.BYPASS_DETECTED, f"model.{item.model}", item.to_json())
    return moved, errors


def _follow(client: MlflowClient, settings: Settings, name: str, *, broken: bool = False) -> list[Moved]:
    """Put every alias of prod.<name> on the guarded form of its version; take off what has none."""
    model = f"{GUARDED}{name}"
    known = model_at(client, model)
    if known is None:
        return []
    held = {text(alias): text(number) for alias, number in known.aliases.items()}
    # what has another name was never promoted
    leading = aliases_of(client, name) if MODEL_NAME.fullmatch(name) else {}
    forms = None
    wanted = {alias: number for alias, number in held.items() if alias in leading}
    if (held or leading) and not broken:
        # after the aliases: a promotion is entered before its alias is set
        forms = Forms(client, settings, ledger_state(settings), name, _versions(client, model))
        placed = {alias: forms.under(alias, number, utc_now()) for alias, number in leading.items()}
        wanted = {alias: form for alias, form in placed.items() if form is not None}
    moved = []
    for alias in sorted(held.keys() | wanted.keys()):
        was, to = held.get(alias), wanted.get(alias)
        if was == to:
            continue
        if to is None:
            client.delete_registered_model_alias(model, alias)
        else:
            client.set_registered_model_alias(model, alias, to)
        if was is not None:
            moved.append(Moved(name, alias, was, to, forms is not None and not forms.is_one(was)))
    return moved


def _versions(client: MlflowClient, model: str) -> list[ModelVersion]:
    """The versions of a registered model that can be asked for by their numbers, oldest first."""
    known = model_at(client, model)
    found = every_version(client, [known] if known else [], f"name = '{model}'")
    return sorted((v for v in found if NUMBER.fullmatch(text(v.version))), key=lambda version: int(version.version))

"""What MLflow says is in production: the versions of prod.* models, where their bytes lie, and what resolves to them.

MLflow finds a version by an alias, by a stage, by `latest` and by its bare number.

Versions whose bytes were once found altered are noted in the store, and from then on hashed at every question.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.mlflow.answers import seconds, text
from tasks.mlflow.artifacts import fetch_place, place_of
from tasks.mlflow.client import registry
from tasks.mlflow.database import database_at, only_mlflow_knows
from tasks.mlflow.listing import (
    NUMBER,
    every_model,
    every_version,
    listed,
    listed_tagged,
    loaded_from,
    model_at,
    models_of,
    version_at,
    versions_of,
)
from tasks.mlflow.promoted import MODEL
from tasks.records.promotions import Promotion
from tasks.settings import Settings
from tasks.sqlite import sqlite_file
from tasks.store.base import Store, check_files, fetch_files
from tasks.store.open import open_store
from tasks.vetting.intake import MAX_BYTES, MAX_FILES, workroom
from vetgate.digest import canonical_json
from vetgate.errors import Altered, Denied, NotUnderstood
from vetgate.formats.manifest import hash_directory
from vetgate.formats.model_name import MODEL_NAME

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient

PREFIX = "prod."
NO_STAGE = "None"
PLACES = "SELECT name, version, storage_location FROM model_versions WHERE workspace = 'default'"
# where versions whose bytes were found altered are noted
TAMPERED = "tampered/"


@dataclass(frozen=True)
class Registered:
    """One version of prod.<name>: its source, and the aliases and the stage that resolve to it; None is no stage.

    `created` is in seconds since 1970. `loads` is where MLflow loads it from, None where that is its source. Of a
    version that an alias names and the registry lacks all but that is empty.
    """

    name: str
    version: str
    source: str
    aliases: tuple[str, ...] = ()
    stage: str | None = None
    created: float = 0.0
    loads: str | None = None

    @property
    def place(self) -> str:
        """Where its bytes are: its source, or words for that and the other place, which are no promoted source."""
        return self.source if self.loads is None else f"{self.source}, loaded from {self.loads!r:.300}"

    @property
    def named(self) -> bool:
        """Whether more than its number, or `latest`, resolves to it."""
        return bool(self.aliases) or self.stage is not None


def registered(settings: Settings, name: str | None = None) -> list[Registered]:
    """Every version of a prod.* model, or of prod.<name>, in order.

    Where MLflow loads each from is asked of a server for those alone that an alias or a stage names, unless only
    prod.<name> is: it answers for one at a time. Raises StoreError when the registry does not answer.
    """
    with registry(settings) as client:
        one = None if name is None else model_at(client, f"{PREFIX}{name}")
        models = every_model(client, PREFIX) if name is None else [one] if one else []
        aliases = {text(m.name if name is None else f"{PREFIX}{name}"): _aliases(m) for m in models}
        found = {(item.name, item.version): item for item in _versions(client, models, name)}
        for model, held in aliases.items():
            for version in held.values():
                key = (model.removeprefix(PREFIX), version)
                # what cannot have been promoted is covered by nothing, wherever it is
                if key not in found and promotable(*key) and (item := version_of(client, *key)):
                    found[key] = item
        return _all_located(settings, client, with_aliases(aliases, found.values()), every=name is not None)


def all_names(settings: Settings) -> list[str]:
    """The names of all registered models, also of others'; raises StoreError when the registry does not answer."""
    with registry(settings) as client:
        return list(dict.fromkeys(text(model.name) for model in listed(models_of(client))))


def tagged_as_prompts(settings: Settings, name: str | None = None) -> list[tuple[str, str]]:
    """Which prod.* models, or which of prod.<name>, MLflow may hide: name and version, empty for the model itself.

    Raises StoreError when the registry does not answer.
    """
    with registry(settings) as client:
        return list_tagged(client, name)


def list_tagged(client: MlflowClient, name: str | None = None) -> list[tuple[str, str]]:
    """What `tagged_as_prompts` gives; raises OddAnswer."""
    which = _filter(name)
    models = ((text(model.name), "") for model in listed_tagged(models_of(client), which))
    versions = ((text(version.name), text(version.version)) for version in listed_tagged(versions_of(client), which))
    found = dict.fromkeys(chain(models, versions))
    return [(model.removeprefix(PREFIX), version) for model, version in found if _is_asked_for(model, name)]


def in_production(settings: Settings, name: str | None = None) -> list[Registered]:
    """Those of the registered versions that an alias or a stage resolves to; raises as `registered`."""
    return [item for item in registered(settings, name) if item.named]


def with_aliases(aliases: dict[str, dict[str, str]], found: Iterable[Registered]) -> list[Registered]:
    """The versions in order, with the aliases (alias to version, by model) that resolve to them."""
    versions = {(f"{PREFIX}{item.name}", item.version): item for item in found}
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for model, held in aliases.items():
        for alias, version in held.items():
            names[model, version].append(alias)
    return [
        replace(
            versions.get((model, version)) or Registered(model.removeprefix(PREFIX), version, ""),
            aliases=tuple(sorted(names[model, version])),
        )
        for model, version in sorted(versions.keys() | names.keys())
    ]


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    """Alias to version of prod.<name>; empty when there is no such model."""
    found = model_at(client, f"{PREFIX}{name}")
    return {} if found is None else _aliases(found)


def source_of(settings: Settings, name: str, version: str) -> str | None:
    """The place of a version, as `Registered` has it; None when the registry has no such version."""
    with registry(settings) as client:
        found = version_of(client, name, version)
    return None if found is None else found.place


def version_of(client: MlflowClient, name: str, version: str) -> Registered | None:
    """A version of prod.<name>, without its aliases; None when the registry has no such version."""
    found = version_at(client, f"{PREFIX}{name}", version)
    return None if found is None else located(client, _as_registered(found))


def promotable(name: str, version: str) -> bool:
    """Whether the gate could ever have promoted something as this: only then is there a key of the store for it."""
    return bool(MODEL_NAME.fullmatch(name) and NUMBER.fullmatch(version))


def located(client: MlflowClient, item: Registered) -> Registered:
    """The version with where MLflow loads it from, which a writer of its database can set apart from the source."""
    if not promotable(item.name, item.version):
        return item
    loads = loaded_from(client, f"{PREFIX}{item.name}", item.version)
    return item if loads in (None, item.source) else replace(item, loads=loads)


def _all_located(settings: Settings, client: MlflowClient, items: list[Registered], *, every: bool) -> list[Registered]:
    path = sqlite_file(settings.tracking_uri)
    if path is not None and not only_mlflow_knows():
        # another version's tables are MLflow's to read
        with suppress(sqlite3.Error), database_at(path) as database:
            places = {(text(model), text(version)): text(loads) for model, version, loads in database.execute(PLACES)}
            return [
                replace(item, loads=loads)
                if (loads := places.get((f"{PREFIX}{item.name}", item.version))) not in (None, "", item.source)
                else item
                for item in items
            ]
    return [located(client, item) if every or item.named else item for item in items]


def check_bytes(settings: Settings, promotion: Promotion) -> int:
    """Hash the bytes of a version where they lie, and their vetted copy; how many they are.

    Raises Denied when they are others than were promoted, StoreError when they cannot be read or are not there at all.
    """
    store, home = open_store(settings), f"vetted/{promotion.manifest}"
    with workroom(settings) as room:
        check_files(store, home, promotion.files)
        vetted = fetch_files(store, home, room / "vetted", promotion.files, most=MAX_BYTES)
        hashed = _hashed(vetted, promotion)
        # a registry that may not point into a directory store keeps a copy; that one is what others load
        if promotion.source != store.url(home):
            hashed += _hashed(_from_run(settings, promotion, room / "run"), promotion)
    return hashed


def _aliases(model: RegisteredModel) -> dict[str, str]:
    return {text(alias): text(version) for alias, version in model.aliases.items()}


def _versions(client: MlflowClient, models: Iterable[RegisteredModel], name: str | None) -> Iterator[Registered]:
    for version in every_version(client, models, _filter(name)):
        if _is_asked_for(text(version.name), name):
            yield _as_registered(version)


def _filter(name: str | None) -> str:
    return f"name LIKE '{PREFIX}%'" if name is None or "'" in name else f"name = '{PREFIX}{name}'"


def _is_asked_for(model: str, name: str | None) -> bool:
    # LIKE is blind to case in SQLite
    return model.startswith(PREFIX) if name is None else model == f"{PREFIX}{name}"


def _as_registered(found: ModelVersion) -> Registered:
    return as_registered(found.name, found.version, found.source, found.current_stage, found.creation_timestamp)


def as_registered(
    model: object, version: object, source: object, stage: object, created: object, loads: object = None
) -> Registered:
    """A version from what MLflow says of it: `created` is in milliseconds, and a stage may be the word None."""
    named = None if text(stage) in ("", NO_STAGE) else text(stage)
    place, loaded = text(source), text(loads)
    elsewhere = loaded if loaded not in ("", place) else None
    return Registered(text(model).removeprefix(PREFIX), text(version), place, (), named, seconds(created), elsewhere)


def _from_run(settings: Settings, promotion: Promotion, room: Path) -> Path:
    with registry(settings) as client:
        where = f"{place_of(client, promotion.run_id)}/{MODEL}"
        if where != promotion.source:
            raise Altered(f"expected the run of {promotion.source} to keep it, got {where!r:.200}; promote again")
        return fetch_place(settings, where, room, promotion.files)


def _hashed(folder: Path, promotion: Promotion) -> int:
    try:
        manifest = hash_directory(folder, max_bytes=MAX_BYTES, max_files=MAX_FILES)
    except NotUnderstood as error:
        raise Altered(f"expected the plain files that were promoted: {error}") from error
    if manifest.sha256 != promotion.manifest:
        changed = [name for name, sha256 in manifest.digests.items() if promotion.files.get(name) != sha256]
        raise Denied(
            f"expected the bytes of {promotion.manifest}, got others in {', '.join(changed)[:300]}; restore them"
        )
    return sum(entry.size for entry in manifest.files)


def untampered(settings: Settings, store: Store, promotion: Promotion) -> None:
    """Raise Denied when the bytes of a version were found altered and still are; others cost one question."""
    if store.exists(_tampered_key(promotion)):
        check_bytes(settings, promotion)


def rehash(settings: Settings, store: Store, promotion: Promotion) -> int:
    """Hash the bytes of a version, and note it when they are altered; how many they are. Raises Denied, StoreError."""
    try:
        return check_bytes(settings, promotion)
    except Denied as error:
        note = {"name": promotion.name, "version": promotion.version, "found": str(error)}
        store.create(_tampered_key(promotion), canonical_json(note))
        raise


def _tampered_key(promotion: Promotion) -> str:
    return f"{TAMPERED}{promotion.name}/{promotion.version}.json"

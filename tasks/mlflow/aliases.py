"""What MLflow says is in production: the versions of prod.* models, where their bytes lie, and what resolves to them.

MLflow finds a version by an alias, by a stage, by `latest` and by its bare number.

Versions whose bytes were once found altered are noted in the store, and from then on hashed at every question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.mlflow.answers import OddAnswer, pages, seconds, text
from tasks.mlflow.artifacts import fetch_place, place_of
from tasks.mlflow.client import registry
from tasks.mlflow.promoted import MODEL
from tasks.records.promotions import Promotion
from tasks.settings import Settings
from tasks.store.base import Store, check_files, fetch_files
from tasks.store.open import open_store
from tasks.vetting.intake import MAX_BYTES, MAX_FILES, workroom
from vetgate.digest import canonical_json
from vetgate.errors import Altered, Denied, NotUnderstood
from vetgate.formats.manifest import hash_directory

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

PREFIX = "prod."
NO_STAGE = "None"
# where versions whose bytes were found altered are noted
TAMPERED = "tampered/"
# as many as one call may ask for
MODELS, VERSIONS = 1000, 10_000


@dataclass(frozen=True)
class Registered:
    """One version of prod.<name>: its source, and the aliases and the stage that resolve to it; None is no stage.

    `created` is in seconds since 1970. Of a version that an alias names and the registry lacks all but that is empty.
    """

    name: str
    version: str
    source: str
    aliases: tuple[str, ...] = ()
    stage: str | None = None
    created: float = 0.0

    @property
    def named(self) -> bool:
        """Whether more than its number, or `latest`, resolves to it."""
        return bool(self.aliases) or self.stage is not None


def registered(settings: Settings, name: str | None = None) -> list[Registered]:
    """Every version of a prod.* model, or of prod.<name>, in order: in a few calls however many there are.

    Raises StoreError when the registry does not answer.
    """
    with registry(settings) as client:
        aliases = dict(_aliases(client) if name is None else [(f"{PREFIX}{name}", aliases_of(client, name))])
        found = list(_versions(client, "" if name is None else f"{PREFIX}{name}"))
    return with_aliases(aliases, found)


def all_names(settings: Settings) -> list[str]:
    """The names of all registered models, also of others'; raises StoreError when the registry does not answer."""
    with registry(settings) as client:

        def page(token: str | None) -> tuple[Any, str | None]:
            found = client.search_registered_models(max_results=MODELS, page_token=token)
            return found, found.token

        return [text(model.name) for found in pages(page) for model in found]


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
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_registered_model(f"{PREFIX}{name}").aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {text(alias): text(version) for alias, version in found.items()}


def source_of(settings: Settings, name: str, version: str) -> str | None:
    """Where the registry says that the bytes of a version lie; None when it has no such version."""
    with registry(settings) as client:
        found = version_of(client, name, version)
    return None if found is None else found.source


def version_of(client: MlflowClient, name: str, version: str) -> Registered | None:
    """A version of prod.<name>, without its aliases; None when the registry has no such version."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(f"{PREFIX}{name}", version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    check_answered(found, f"{PREFIX}{name}", version)
    return as_registered(found.name, found.version, found.source, found.current_stage, found.creation_timestamp)


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


def _aliases(client: MlflowClient) -> Iterator[tuple[str, dict[str, str]]]:
    def page(token: str | None) -> tuple[Any, str | None]:
        # ordered by what does not change, so that no page skips a model that is written to meanwhile
        found = client.search_registered_models(
            f"name LIKE '{PREFIX}%'", max_results=MODELS, order_by=["name ASC"], page_token=token
        )
        return found, found.token

    for found in pages(page):
        for model in found:
            # LIKE is blind to case in SQLite
            if text(model.name).startswith(PREFIX) and model.aliases:
                yield text(model.name), {text(alias): text(version) for alias, version in model.aliases.items()}


def _versions(client: MlflowClient, model: str) -> Iterator[Registered]:
    """Every version of a model, or of all in production where it is empty."""
    which = f"name = '{model}'" if model and "'" not in model else f"name LIKE '{PREFIX}%'"

    def page(token: str | None) -> tuple[Any, str | None]:
        found: Any = client.search_model_versions(
            which, max_results=VERSIONS, order_by=["name ASC", "version_number DESC"], page_token=token
        )
        return found, found.token

    for found in pages(page):
        for version in found:
            # LIKE is blind to case in SQLite
            if version.name == model or (not model and text(version.name).startswith(PREFIX)):
                yield as_registered(
                    version.name, version.version, version.source, version.current_stage, version.creation_timestamp
                )


def as_registered(model: object, version: object, source: object, stage: object, created: object) -> Registered:
    """A version from what MLflow says of it: `created` is in milliseconds, and a stage may be the word None."""
    named = None if text(stage) in ("", NO_STAGE) else text(stage)
    return Registered(text(model).removeprefix(PREFIX), text(version), text(source), (), named, seconds(created))


def check_answered(found: ModelVersion, model: str, version: str) -> None:
    """Raise OddAnswer where the registry answers with another version than the one that it was asked for."""
    if (found.name, text(found.version)) != (model, version):
        got = f"version {text(found.version)!r:.40} of {found.name!r:.80}"
        raise OddAnswer(f"{got} where version {version} of {model} was asked for")


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

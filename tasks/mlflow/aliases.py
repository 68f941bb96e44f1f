"""What is in production: every alias of a prod.* model, its version and where the bytes of that lie, as MLflow says.

Versions whose bytes were once found altered are noted in the store, and from then on hashed at every question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.mlflow.client import registry
from tasks.mlflow.promoted import MODEL
from tasks.records.promotions import Promotion
from tasks.settings import Settings
from tasks.store.base import Store, fetch_all
from tasks.store.open import open_store
from tasks.vetting.intake import MAX_BYTES, MAX_FILES, workroom
from vetgate.digest import canonical_json
from vetgate.errors import Altered, Denied, NotUnderstood, StoreError
from vetgate.formats.manifest import hash_directory

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PREFIX = "prod."
# as many as one call may ask for
MODELS, VERSIONS = 1000, 10_000


@dataclass(frozen=True)
class Aliased:
    """One version of prod.<name> that aliases point to, and its source; empty when the registry has no such version."""

    name: str
    version: str
    source: str
    aliases: tuple[str, ...]


def in_production(settings: Settings, name: str | None = None) -> list[Aliased]:
    """Every version of a prod.* model, or of prod.<name>, that has an alias: in a few calls however many there are.

    Raises StoreError when the registry does not answer.
    """
    with registry(settings) as client:
        aliases = dict(_aliases(client) if name is None else [(f"{PREFIX}{name}", aliases_of(client, name))])
        sources = _sources(client, aliases, "" if name is None else f"{PREFIX}{name}")
    return by_version(aliases, sources)


def all_names(settings: Settings) -> list[str]:
    """The names of all registered models, also of others'; raises StoreError when the registry does not answer."""
    names: list[str] = []
    with registry(settings) as client:
        token = None
        while True:
            found = client.search_registered_models(max_results=MODELS, page_token=token)
            names += [str(model.name) for model in found]
            token = found.token
            if not token:
                return names


def by_version(aliases: dict[str, dict[str, str]], sources: dict[tuple[str, str], str]) -> list[Aliased]:
    """A version each, in order, from alias to version by model and source by model and version."""
    return [
        Aliased(model.removeprefix(PREFIX), version, sources.get((model, version), ""), tuple(sorted(names)))
        for model, found in sorted(aliases.items())
        for version, names in sorted(_by_version(found).items())
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
    return {alias: str(version) for alias, version in found.items()}


def source_of(settings: Settings, name: str, version: str) -> str | None:
    """Where the registry says that the bytes of a version lie; None when it has no such version."""
    from mlflow.exceptions import MlflowException

    with registry(settings) as client:
        try:
            return str(client.get_model_version(f"{PREFIX}{name}", version).source or "")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def check_bytes(settings: Settings, promotion: Promotion) -> int:
    """Hash the bytes of a version where they lie, and their vetted copy; how many they are.

    Raises Denied when they are others than were promoted, StoreError when they cannot be read or are not there at all.
    """
    store, home = open_store(settings), f"vetted/{promotion.manifest}"
    with workroom(settings) as room:
        hashed = _hashed(_from_store(store, home, promotion, room / "vetted"), promotion)
        # a registry that may not point into a directory store keeps a copy; that one is what others load
        if promotion.source != store.url(home):
            hashed += _hashed(_from_run(settings, promotion, room / "run"), promotion)
    return hashed


def _aliases(client: MlflowClient) -> Iterator[tuple[str, dict[str, str]]]:
    token = None
    while True:
        # ordered by what does not change, so that no page skips a model that is written to meanwhile
        found = client.search_registered_models(
            f"name LIKE '{PREFIX}%'", max_results=MODELS, order_by=["name ASC"], page_token=token
        )
        for model in found:
            # LIKE is blind to case in SQLite
            if model.name.startswith(PREFIX) and model.aliases:
                yield model.name, {alias: str(version) for alias, version in model.aliases.items()}
        token = found.token
        if not token:
            return


def _sources(client: MlflowClient, aliases: dict[str, dict[str, str]], model: str) -> dict[tuple[str, str], str]:
    """(model, version) to source, for every version that has an alias."""
    wanted = {(name, version) for name, found in aliases.items() for version in found.values()}
    which = f"name = '{model}'" if model and "'" not in model else f"name LIKE '{PREFIX}%'"
    sources: dict[tuple[str, str], str] = {}
    token = None
    while wanted - sources.keys():
        found: Any = client.search_model_versions(
            which, max_results=VERSIONS, order_by=["name ASC", "version_number DESC"], page_token=token
        )
        for version in found:
            if (key := (version.name, str(version.version))) in wanted:
                sources[key] = str(version.source or "")
        token = found.token
        if not token:
            break
    return sources


def _by_version(aliases: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for alias, version in aliases.items():
        found[version].append(alias)
    return found


def _from_store(store: Store, home: str, promotion: Promotion, room: Path) -> Path:
    # one more than there may be is enough to know
    keys = [key for _, key in zip(range(MAX_FILES + 1), store.list(f"{home}/"), strict=False)]
    _check_names({key.removeprefix(f"{home}/") for key in keys}, home, promotion)
    return fetch_all(store, home, room)


def _from_run(settings: Settings, promotion: Promotion, room: Path) -> Path:
    room.mkdir()
    with registry(settings) as client:
        listed = client.list_artifacts(promotion.run_id, MODEL)
        _check_names({item.path.removeprefix(f"{MODEL}/") for item in listed}, promotion.source, promotion)
        if sum(item.file_size or 0 for item in listed) > MAX_BYTES:
            raise Denied(f"expected at most {MAX_BYTES} bytes in {promotion.source}, got more; restore the vetted ones")
        return Path(client.download_artifacts(promotion.run_id, MODEL, str(room)))


def _check_names(found: set[str], where: str, promotion: Promotion) -> None:
    if not found:
        # a disk that is not mounted must not demote what lies on it; loading from there gives nothing anyway
        raise StoreError(f"expected the vetted bytes in {where}, got no file at all; mount the disk or restore them")
    if wrong := sorted(found ^ set(promotion.files)):
        raise Altered(f"expected exactly the promoted files in {where}, got others: {', '.join(wrong)[:300]}")


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
    return f"tampered/{promotion.name}/{promotion.version}.json"

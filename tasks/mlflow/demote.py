"""Take back what resolves to a version of a prod.* model, and leave a record of it whatever happens in between.

That is an alias, a stage, a tag that hides it, or the version itself, which its number and `latest` find. What is about
to be done is noted in the gate's home first, then the registry is changed, then the ledger is told. The registry does
not wait for the ledger: who breaks that must not keep in production what does not belong there.
"""

from __future__ import annotations

import fcntl
import json
import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import events
from tasks.mlflow.aliases import NO_STAGE, PREFIX, aliases_of, list_tagged, version_of
from tasks.mlflow.client import registry
from tasks.records.ledger_chain import append, head
from tasks.records.ledger_state import ledger_state
from tasks.settings import Settings
from tasks.store.directory import write_whole
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import StoreError, VetgateError
from vetgate.trust.keys import utc_now

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DEMOTION, BYPASS = "demotion", "bypass"
EVENTS = {DEMOTION: events.MODEL_DEMOTED, BYPASS: events.BYPASS_DETECTED}


@dataclass(frozen=True)
class TakenBack:
    """What was taken off a version, and why: an alias, a stage, a tag, or, where all are None, the version itself.

    A tag without a version was the model's. `to` is the version that an alias was put back to, None if it was deleted.
    `since` is the number of the last ledger entry before.
    """

    id: str
    kind: str
    name: str
    version: str
    alias: str | None
    stage: str | None
    to: str | None
    reason: str
    since: int
    tag: str | None = None

    @property
    def what(self) -> tuple[str, str, str | None, str | None, str | None]:
        """The model, the version, and what resolved to it."""
        return self.name, self.version, self.alias, self.stage, self.tag

    def to_json(self) -> dict[str, Any]:
        """What ledger and event say; the ledger goes by `since`: a later move of the alias stands."""
        return {k: v for k, v in asdict(self).items() if k != "id"} | {"model": f"{PREFIX}{self.name}"}


def take_back(
    settings: Settings,
    name: str,
    version: str,
    *,
    kind: str,
    reason: str,
    alias: str | None = None,
    stage: str | None = None,
    to: str | None = None,
    tag: str | None = None,
) -> TakenBack | None:
    """Put an alias back to `to` or delete it, end a stage, take a tag off, or delete the version from the registry.

    None when it no longer stands for `version`. `settle` records it.
    """
    done = TakenBack(uuid.uuid4().hex, kind, name, version, alias, stage, to, reason, _last_entry(settings), tag)
    model = f"{PREFIX}{name}"
    with _alone(settings) as folder, _naming(done), registry(settings) as client:
        # read again right before: MLflow cannot compare and set, and another client may have moved it
        if not _stands(client, done):
            return None
        for path, noted in _noted(folder):
            if noted.what == done.what:
                path.unlink()  # its process was killed before it changed the registry
        write_whole(folder / f"{done.id}.json", lambda file: str(file.write(canonical_json(asdict(done)))))
        if tag is not None and version:
            client.delete_model_version_tag(model, version, tag)
        elif tag is not None:
            client.delete_registered_model_tag(model, tag)
        elif stage is not None:
            client.transition_model_version_stage(model, version, NO_STAGE)
        elif alias is None:
            client.delete_model_version(model, version)
        elif to is None:
            client.delete_registered_model_alias(model, alias)
        else:
            client.set_registered_model_alias(model, alias, to)
    return done


def _named(done: TakenBack) -> str:
    of = f"version {done.version} of prod.{done.name!r:.80}" if done.version else f"prod.{done.name!r:.80}"
    for what, value in (("alias", done.alias), ("stage", done.stage), ("tag", done.tag)):
        if value is not None:
            return f"{what} {value!r:.80} of {of}"
    return of


@contextmanager
def _naming(done: TakenBack) -> Iterator[None]:
    """The registry's errors say nothing of what it was asked."""
    try:
        yield
    except StoreError as error:
        raise StoreError(f"expected to take back {_named(done)}, got: {error}") from error


def settle(settings: Settings) -> list[TakenBack]:
    """Enter into the ledger, once, and tell of everything that was taken back, also by a run that was killed.

    What stands all the same is entered as well, once a day: who sets it again at once neither keeps it out of the
    ledger nor fills that.
    """
    entered = []
    with _alone(settings) as folder:
        for path, noted in _noted(folder):
            with registry(settings) as client:
                stands = _stands(client, noted)
            if not stands:
                append(settings, noted.kind, noted.to_json(), once=noted.id, since=noted.since)
            elif (state := ledger_state(settings)).entered(once := _once_a_day(noted)) is None:
                append(settings, noted.kind, noted.to_json(), once=once, since=state.end)
            entered.append(noted)
            path.unlink()
    for noted in entered:
        # a hint only: the ledger holds it
        events.emit(EVENTS[noted.kind], f"model.{PREFIX}{noted.name}", noted.to_json(), once=noted.id)
    return entered


def _once_a_day(noted: TakenBack) -> str:
    return f"standing:{utc_now().date().isoformat()}:{sha256_json([noted.kind, *noted.what, noted.to])}"


def standing_again(settings: Settings, taken: Iterable[TakenBack]) -> list[StoreError]:
    """An error for each that was taken back and stands all the same, with an alarm: somebody sets it again.

    Raises StoreError when the registry does not answer.
    """
    with registry(settings) as client:
        found = [item for item in taken if _stands(client, item)]
    for item in found:
        events.emit(events.BYPASS_REPEATED, f"model.{PREFIX}{item.name}", item.to_json())
    return [
        StoreError(
            f"expected {_named(item)} to be gone, got it again right after it was taken back; "
            "find who writes the registry, and stop that"
        )
        for item in found
    ]


def _stands(client: MlflowClient, noted: TakenBack) -> bool:
    """Whether it still resolves to the version."""
    if noted.alias is not None:
        return aliases_of(client, noted.name).get(noted.alias) == noted.version
    if noted.tag is not None:
        return (noted.name, noted.version) in list_tagged(client, noted.name)
    found = version_of(client, noted.name, noted.version)
    return found is not None and (noted.stage is None or found.stage == noted.stage)


def _noted(folder: Path) -> list[tuple[Path, TakenBack]]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append((path, TakenBack(**json.loads(path.read_bytes()))))
        except (ValueError, TypeError):
            aside = path.with_suffix(".unread")
            path.rename(aside)
            logging.getLogger(__name__).warning(
                "expected what was taken back in %s, got another form; it is set aside as %s", path, aside
            )
    return found


def _last_entry(settings: Settings) -> int:
    try:
        return head(settings)
    except VetgateError:
        return 0  # `settle` says what is wrong with it


@contextmanager
def _alone(settings: Settings) -> Iterator[Path]:
    """The folder of what is being taken back, held by one process of this home at a time."""
    folder = settings.home / "demotions"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    except OSError as error:
        raise StoreError(f"expected to write in {folder}, got {error.strerror}; check the disk") from error

"""Take an alias of a prod.* model back, and leave a record of it whatever happens in between.

What is about to be done is noted in the gate's home first, then the alias is moved, then the ledger is told. The alias
does not wait for the ledger: who breaks that must not keep in production what does not belong there.
"""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks import events
from tasks.mlflow.aliases import PREFIX, aliases_of
from tasks.mlflow.client import registry
from tasks.records.ledger_chain import append, head
from tasks.settings import Settings
from tasks.store.directory import write_whole
from vetgate.digest import canonical_json
from vetgate.errors import StoreError, VetgateError

DEMOTION, BYPASS = "demotion", "bypass"
EVENTS = {DEMOTION: events.MODEL_DEMOTED, BYPASS: events.BYPASS_DETECTED}


@dataclass(frozen=True)
class TakenBack:
    """One alias that was taken off a version, and why; `to` is the version that it was put back to, None if deleted.

    `since` is the number of the last ledger entry before.
    """

    id: str
    kind: str
    name: str
    alias: str
    version: str
    to: str | None
    reason: str
    since: int

    def to_json(self) -> dict[str, Any]:
        """What ledger and event say."""
        return {k: v for k, v in asdict(self).items() if k not in ("id", "since")} | {"model": f"{PREFIX}{self.name}"}


def take_back(
    settings: Settings, name: str, alias: str, version: str, *, kind: str, reason: str, to: str | None
) -> TakenBack | None:
    """Put the alias back to `to`, or delete it; None when it no longer stands for `version`. `settle` records it."""
    done = TakenBack(uuid.uuid4().hex, kind, name, alias, version, to, reason, _last_entry(settings))
    with _alone(settings) as folder, registry(settings) as client:
        # read again right before: MLflow cannot compare and set, and another client may have moved it
        if aliases_of(client, name).get(alias) != version:
            return None
        for path, noted in _noted(folder):
            if (noted.name, noted.alias, noted.version) == (name, alias, version):
                path.unlink()  # its process was killed before it moved the alias
        write_whole(folder / f"{done.id}.json", lambda file: str(file.write(canonical_json(asdict(done)))))
        if to is None:
            client.delete_registered_model_alias(f"{PREFIX}{name}", alias)
        else:
            client.set_registered_model_alias(f"{PREFIX}{name}", alias, to)
    return done


def settle(settings: Settings) -> list[TakenBack]:
    """Enter into the ledger, once, and tell of everything that was taken back, also by a run that was killed."""
    entered = []
    with _alone(settings) as folder:
        for path, noted in _noted(folder):
            with registry(settings) as client:
                moved = aliases_of(client, noted.name).get(noted.alias) != noted.version
            if moved:
                append(settings, noted.kind, noted.to_json(), once=noted.id, since=noted.since)
                entered.append(noted)
            path.unlink()
    for noted in entered:
        # a hint only: the ledger holds it
        events.emit(EVENTS[noted.kind], f"model.{PREFIX}{noted.name}", noted.to_json(), once=noted.id)
    return entered


def _noted(folder: Path) -> list[tuple[Path, TakenBack]]:
    return [(path, TakenBack(**json.loads(path.read_bytes()))) for path in sorted(folder.glob("*.json"))]


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

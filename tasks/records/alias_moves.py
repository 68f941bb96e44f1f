"""Moves of an alias onto a promoted version: begun before the ledger knows of them, ended after the alias is set.

A promotion that was killed goes on with the move it had begun, so that the ledger holds each move once, and one that is
made again on purpose is a new one.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from tasks.records.ledger_chain import Entry, append, head
from tasks.records.ledger_state import LedgerState
from tasks.records.promotions import promotion_key
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.digest import canonical_json
from vetgate.errors import Denied
from vetgate.trust.strict_json import as_object, as_time, parse

# the alias is set a moment after the ledger has its move
UNDERWAY = timedelta(minutes=2)


@dataclass(frozen=True)
class AliasMove:
    """The `number`-th move of an alias of prod.<name>: onto a version, from `old` (None: it was not set).

    `since` is the last entry of the ledger before it began.
    """

    name: str
    alias: str
    version: str
    old: str | None
    manifest: str
    attestation: str
    approvals: tuple[str, ...]
    number: int = 1
    since: int = 0
    done: bool = False


def begin_move(settings: Settings, wanted: AliasMove) -> AliasMove:
    """The move to be made: the one that was begun and not ended, if it is this one, else a new one."""
    store = open_store(settings)
    where = move_key(wanted.name, wanted.alias)
    if not store.exists(where):
        first = replace(wanted, since=head(settings))
        if store.create(where, _bytes(first)):
            return first
    stored, etag = _read(store, wanted.name, wanted.alias)
    if stored == replace(wanted, number=stored.number, since=stored.since):
        return stored
    following = replace(wanted, number=stored.number + 1, since=head(settings))
    store.replace(where, _bytes(following), if_match=etag)
    return following


def enter_move(settings: Settings, move: AliasMove) -> Entry:
    """The ledger's entry of a move, made once; the promotion of its version must be kept already."""
    key = promotion_key(move.name, move.version)
    said = {k: v for k, v in asdict(move).items() if k not in ("since", "done", "number")}
    said["approvals"] = list(move.approvals)
    bytes_of = hashlib.sha256(open_store(settings).read(key)).hexdigest()
    once = f"moves/{move.name}/{move.alias}/{move.number}"
    return append(settings, "promotion", {"key": key, "sha256": bytes_of, **said}, once=once, since=move.since)


def end_move(settings: Settings, name: str, alias: str, version: str) -> None:
    """Say that the alias is on this version, if a move there was begun."""
    store = open_store(settings)
    if not store.exists(move_key(name, alias)):
        return
    stored, etag = _read(store, name, alias)
    if stored.version == version and not stored.done:
        store.replace(move_key(name, alias), _bytes(replace(stored, done=True)), if_match=etag)


def unfinished_move(store: Store, name: str, version: str) -> AliasMove | None:
    """A move onto this version that was begun and not ended, or None."""
    for key in store.list(f"moves/{name}/"):
        stored, _ = _read(store, name, key.rpartition("/")[2].removesuffix(".json"))
        if stored.version == version and not stored.done:
            return stored
    return None


def misplaced(ledger: LedgerState, name: str, alias: str, version: str, now: datetime) -> Denied | None:
    """Why an alias of prod.<name> must not be on this version; None where the gate's newest signed move put it there.

    For a moment after a promotion is entered the alias may still be where it was.
    """
    move = ledger.move(name, alias)
    if move is not None:
        underway = move.kind == "promotion" and now < as_time(move.issued, "issued") + UNDERWAY
        if version == move.version or (underway and version == move.before):
            return None
    last = None if move is None else move.version
    where = "unset" if last is None else f"on version {last}"
    return Denied(
        f"expected alias {alias} of prod.{name} {where}, where the gate last put it, got version {version}; "
        "promote what it should be on"
    )


def move_key(name: str, alias: str) -> str:
    """Where the last move of an alias is kept."""
    return f"moves/{name}/{alias}.json"


def _read(store: Store, name: str, alias: str) -> tuple[AliasMove, str]:
    """The last move of an alias and its etag; raises KeyError when there was none."""
    data, etag = store.read_tagged(move_key(name, alias))
    fields = as_object(parse(data, "a move"), AliasMove.__dataclass_fields__, "a move")
    if (fields["name"], fields["alias"]) != (name, alias):
        raise Denied(f"expected the move of {alias} of {name}, got another; remove {move_key(name, alias)}")
    return AliasMove(**{**fields, "approvals": tuple(fields["approvals"])}), etag


def _bytes(move: AliasMove) -> bytes:
    return canonical_json(asdict(move))

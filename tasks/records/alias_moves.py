"""Moves of an alias onto a promoted version: each is one entry of the ledger, made before the alias is set.

Where an alias belongs is what its newest entry says. A promotion that was killed after its entry finds that one and
goes on; one that is made again on purpose, after the gate put the alias elsewhere, is entered anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from tasks.records.ledger_chain import append
from tasks.records.ledger_state import LastMove, LedgerState
from tasks.records.promotions import promotion_key
from tasks.settings import Settings
from vetgate.errors import Denied
from vetgate.trust.strict_json import as_time

# the alias is set a moment after the ledger has its move
UNDERWAY = timedelta(minutes=2)


@dataclass(frozen=True)
class AliasMove:
    """A move of an alias of prod.<name> onto a version, from `old` (None: it was not set), by a verdict and approvals.

    `sha256` is that of the version's promotion as it is kept, `attestation` the digest of the verdict.
    """

    name: str
    alias: str
    version: str
    old: str | None
    manifest: str
    attestation: str
    approvals: Sequence[str]
    sha256: str


def enter_move(settings: Settings, state: LedgerState, move: AliasMove) -> None:
    """Enter a move, unless the newest entry of its alias says that already."""
    last = state.move(move.name, move.alias)
    if last is not None and last.version == move.version:
        return
    said = {**asdict(move), "approvals": list(move.approvals), "key": promotion_key(move.name, move.version)}
    # of two promotions at once the second finds the entry of the first
    once = f"moves/{move.name}/{move.alias}/{0 if last is None else last.sequence}/{move.version}"
    append(settings, "promotion", said, once=once, since=state.end)


def end_move(ledger: LedgerState, name: str, alias: str) -> None:
    """Say in the store that the alias is set where its newest move puts it.

    Nothing is let through by that: from then on it may no longer be where it was before.
    """
    move = ledger.move(name, alias)
    if move is not None:
        ledger.store.create(_end_key(name, move), b"{}")


def end_promotion(ledger: LedgerState, name: str, version: str) -> None:
    """Say in the store that a version of prod.<name> is promoted to the end, so that nobody need go on with it."""
    ledger.store.create(_done_key(name, version), b"{}")


def unfinished(ledger: LedgerState, name: str, alias: str) -> LastMove | None:
    """The move that says where the alias belongs, if what it is on was not promoted to the end.

    Registry or guarded model may lack it: somebody is at work on it, or was killed.
    """
    move = ledger.move(name, alias)
    if move is None or move.version is None or ledger.store.exists(_done_key(name, move.version)):
        return None
    return move


def is_recent(move: LastMove, now: datetime) -> bool:
    """Whether a promotion was entered a moment ago, so that what belongs to it may still be done."""
    return move.kind == "promotion" and now < as_time(move.issued, "issued") + UNDERWAY


def _underway(ledger: LedgerState, name: str, move: LastMove, now: datetime) -> bool:
    return is_recent(move, now) and not ledger.store.exists(_end_key(name, move))


def _end_key(name: str, move: LastMove) -> str:
    return f"moves/{name}/{move.sequence}.json"


def _done_key(name: str, version: str) -> str:
    return f"moves/{name}/version-{version}.json"


def misplaced(ledger: LedgerState, name: str, alias: str, version: str, now: datetime) -> Denied | None:
    """Why an alias of prod.<name> must not be on this version; None where the gate's newest signed move put it there.

    For a moment after a promotion is entered the alias may still be where it was, until the gate says that it is set.
    """
    move = ledger.move(name, alias)
    if move is not None and (
        version == move.version or (version == move.before and _underway(ledger, name, move, now))
    ):
        return None
    last = None if move is None else move.version
    where = "unset" if last is None else f"on version {last}"
    return Denied(
        f"expected alias {alias} of prod.{name} {where}, where the gate last put it, got version {version}; "
        "promote what it should be on"
    )

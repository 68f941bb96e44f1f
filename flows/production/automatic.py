"""Promote what passed without being asked, where the policy says so."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flows.production.promote import promote
from tasks.records.alias_moves import is_recent, unfinished
from tasks.records.attestations import newest_attestation
from tasks.records.ledger_state import LastMove, LedgerState, ledger_state
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.intake import Record, read_record, records, submitted
from tasks.vetting.queue import is_canary
from tasks.vetting.settled import Settled
from vetgate.errors import BadSubmission, Denied, VetgateError
from vetgate.shape import Blob
from vetgate.trust.keys import utc_now
from vetgate.verdict.policy import load_policy

logger = logging.getLogger(__name__)


def promote_if_due(settings: Settings, manifest_sha256: str) -> Blob | None:
    """The promotion of a submission that is due, or None when the policy promotes nothing by itself or it is not.

    Raises Denied when the gate refuses.
    """
    alias = load_policy(settings.policy).promotion.automatic
    store = open_store(settings)
    if alias is None or not store.exists(f"submissions/{manifest_sha256}.json"):
        return None
    record = read_record(store, manifest_sha256)
    state = ledger_state(settings)
    if _settled(state, record, alias) or not _passed(state, record):
        return None
    begun = _begun(state, record, alias)
    if begun is not None and is_recent(begun, utc_now()):
        return None  # whoever began it may still be at work
    return promote(settings, record.submission.name, manifest_sha256, alias)


def promote_all_due(settings: Settings, wrong: Callable[[str], object] = logger.warning) -> list[Blob]:
    """What an event was lost of: every promotion that is due, oldest first, or why it was refused.

    `wrong` is told of each that failed; that keeps no other out.
    """
    alias = load_policy(settings.policy).promotion.automatic
    if alias is None:
        return []
    state, settled = ledger_state(settings), Settled(settings, "promoted")
    store = state.store
    # what was promoted, or is older than what was, is never due again
    fresh = (manifest for manifest in submitted(store) if manifest not in settled)
    left = records(store, fresh, logger.warning)
    done: list[Blob] = []
    for record in sorted(left, key=_order):
        try:
            if _settled(state, record, alias):
                settled.add([record.id])
                continue
            granted = promote_if_due(settings, record.id)
        except Denied as error:
            granted = {"manifest_sha256": record.id, "refused": str(error)}
        except VetgateError as error:
            wrong(f"{record.id}: {error}")
            continue
        done += [granted] if granted else []
    return done


def _settled(state: LedgerState, record: Record, alias: str) -> bool:
    """Whether it is a canary, was promoted to the end, or is older than what was promoted under its name."""
    if is_canary(state.store, record):
        return True
    if _begun(state, record, alias) is not None:
        return False
    promoted = state.promoted_of(record.submission.name)
    return any(_not_before(state.store, manifest, record) for manifest in promoted)


def _begun(state: LedgerState, record: Record, alias: str) -> LastMove | None:
    """The move that put the alias on it, where its promotion did not come to its end."""
    name = record.submission.name
    move = unfinished(state, name, alias)
    return move if move is not None and state.promoted(name, move.version or "") == record.id else None


def _not_before(store: Store, manifest: str, record: Record) -> bool:
    try:
        return _order(read_record(store, manifest)) >= _order(record)
    except BadSubmission:
        return False


def _order(record: Record) -> tuple[str, str]:
    return record.submitted_at, record.id


def _passed(state: LedgerState, record: Record) -> bool:
    try:
        newest = newest_attestation(state, record.id)
    except Denied:
        return False  # it was altered: promotion by hand says so
    if newest is None:
        return False
    return bool(newest.claims["verdict"] == "PASS" and newest.claims["name"] == record.submission.name)

"""What a verified ledger and its store prove about the time: it is not before the last entry, and as the store says."""

from __future__ import annotations

from datetime import datetime

from tasks.records.ledger_chain import Entry, check_clock, not_before, read_entry, removed
from tasks.records.ledger_state import LedgerState


def moment_after(state: LedgerState, now: datetime) -> datetime:
    """`now`, and never before the ledger's last entry.

    Raises WrongClock for a clock that is further behind, or that the store's own contradicts.
    """
    check_clock(state.store, now)
    last = last_of(state)
    return now if last is None else not_before(last, now)


def last_of(state: LedgerState) -> Entry | None:
    """The last entry of a ledger that was read, None where it has none; raises Removed when it is gone meanwhile."""
    if not state.end:
        return None
    try:
        return read_entry(state.store, state.trust, state.end)
    except KeyError:
        raise removed(f"expected entry {state.end} of the ledger, got none; restore the ledger") from None

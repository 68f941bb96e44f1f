"""What waits to be vetted: submissions without a result, whoever forgot them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.lease import Lease, read_lease
from tasks.store.open import open_store
from tasks.vetting.intake import Record, records

# a vetting that died is tried again after this long, then after twice as long, and so on
FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True)
class Waiting:
    """A submission without a result: at work (`lease` live), or due at a moment (seconds since the epoch)."""

    record: Record
    lease: Lease | None
    at_work: bool
    due: float

    @property
    def attempts(self) -> int:
        """How many vettings of it began, the one at work included."""
        return self.lease.attempt if self.lease else 0


def waiting(settings: Settings, now: float | None = None) -> Iterator[Waiting]:
    """Every submission without a result, oldest first; canaries are vetted with their batch only."""
    store = open_store(settings)
    moment = time.time() if now is None else now
    finished = {key.split("/")[1] for key in store.list("results/")}
    canaries = {key.split("/")[1].removesuffix(".json") for key in store.list("canaries/")}
    for record in records(store):
        if record.id not in finished and record.id not in canaries:
            yield _waiting(store, record, moment)


def _waiting(store: Store, record: Record, now: float) -> Waiting:
    lease = read_lease(store, record.id)
    if lease is None:
        return Waiting(record, None, False, 0.0)
    if lease.live(now):
        return Waiting(record, lease, True, lease.until)
    # one that was killed ended before its lease ran out; when exactly nobody knows
    pause = min(FIRST_PAUSE_SECONDS * 2.0 ** max(lease.attempt - 1, 0), LONGEST_PAUSE_SECONDS) if lease.done else 0.0
    return Waiting(record, lease, False, lease.until + pause if lease.done else 0.0)

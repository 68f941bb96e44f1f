"""What waits to be vetted: submissions without a result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.lease import Lease, read_lease
from tasks.store.open import open_store
from tasks.vetting.intake import Record, records, submitted
from tasks.vetting.settled import Settled

logger = logging.getLogger(__name__)
# a vetting that died is tried again after this long, then after twice as long, and so on
FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 3600.0
# of more than so many, all results are listed at once
ONE_BY_ONE = 200


@dataclass(frozen=True)
class Waiting:
    """A submission without a result: at work (`lease` live), or due at a moment (seconds since the epoch)."""

    record: Record
    lease: Lease | None
    at_work: bool
    due: float

    @property
    def attempts(self) -> int:
        """How many vettings of it began, the one at work included, as its lease in the store has it."""
        return self.lease.attempt if self.lease else 0


def waiting(
    settings: Settings, now: float | None = None, wrong: Callable[[str], object] = logger.warning
) -> Iterator[Waiting]:
    """Every submission without a result, oldest first; canaries are vetted with their batch only.

    `wrong` is told of those whose record does not follow from their bytes, and of leases that can be none.
    """
    store = open_store(settings)
    moment = time.time() if now is None else now
    settled = Settled(settings, "finished")
    left = [manifest for manifest in submitted(store) if manifest not in settled]
    done = _finished(store, left)
    settled.add(done)
    for record in records(store, (manifest for manifest in left if manifest not in done), wrong):
        yield _waiting(record, moment, read_lease(store, record.id, settings.lease_seconds, moment, wrong))


def _finished(store: Store, manifests: list[str]) -> set[str]:
    """Those of them that have a result, or are canaries."""
    done = {key.split("/")[1].removesuffix(".json") for key in store.list("canaries/")}
    if len(manifests) > ONE_BY_ONE:
        done |= {key.split("/")[1] for key in store.list("results/")}
    else:
        done |= {manifest for manifest in manifests if next(iter(store.list(f"results/{manifest}/")), None)}
    return done.intersection(manifests)


def _waiting(record: Record, now: float, lease: Lease | None) -> Waiting:
    if lease is None:
        return Waiting(record, None, False, 0.0)
    if lease.live(now):
        return Waiting(record, lease, True, lease.until)
    # one that was killed ended before its lease ran out; when exactly is unknown
    doubled = 2.0 ** min(max(lease.attempt - 1, 0), 16)
    pause = min(FIRST_PAUSE_SECONDS * doubled, LONGEST_PAUSE_SECONDS) if lease.done else 0.0
    return Waiting(record, lease, False, lease.until + pause if lease.done else 0.0)

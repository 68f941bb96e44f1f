"""What waits to be vetted: submissions without a verdict in the ledger and a result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.lease import Lease, read_lease
from tasks.store.open import open_store
from tasks.vetting.conversion import vetted_in_place_of
from tasks.vetting.intake import Record, read_record, records, submitted
from tasks.vetting.settled import Settled
from vetgate.errors import VetgateError

logger = logging.getLogger(__name__)
# a vetting that died is tried again after this long, then after twice as long, and so on
FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 3600.0
# of more than so many, all results are listed at once
ONE_BY_ONE = 200
# what canaries say of their supplier
CANARY_SUPPLIER = "vetgate canary"


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
    settings: Settings,
    decided: Callable[[str], bool],
    now: float | None = None,
    wrong: Callable[[str], object] = logger.warning,
    taken_back: Callable[[str], bool] = lambda manifest: False,
) -> Iterator[Waiting]:
    """Every submission without a result, oldest first; canaries are vetted with their batch only.

    `decided` says whether the ledger holds a verdict on a manifest: a result alone may be anybody's. What was
    `taken_back` by a revocation waits for a person. `wrong` is told of those whose record does not follow from their
    bytes, of leases that can be none, and of marks that keep nothing from being vetted.
    """
    store = open_store(settings)
    moment = time.time() if now is None else now
    settled = Settled(settings, "finished")
    left = [manifest for manifest in submitted(store) if manifest not in settled]
    done = _with_result(store, left)
    for manifest in sorted(manifest for manifest in done if not decided(manifest)):
        wrong(f"{manifest}: expected a verdict in the ledger beside results/{manifest}/, got none; it is vetted")
        done.remove(manifest)
    done |= _canaries(store, set(left) - done, wrong)
    done |= _written_anew(settings, set(left) - done)
    settled.add(done)
    for record in records(store, (manifest for manifest in left if manifest not in done), wrong):
        if not taken_back(record.id):
            yield _waiting(record, moment, read_lease(store, record.id, settings.lease_seconds, moment, wrong))


def is_canary(store: Store, record: Record) -> bool:
    """Whether a submission is a canary; the mark alone may be anybody's, and bytes that say so are not vetted."""
    return record.submission.supplier == CANARY_SUPPLIER and store.exists(f"canaries/{record.id}.json")


def _with_result(store: Store, manifests: list[str]) -> set[str]:
    if len(manifests) > ONE_BY_ONE:
        return {key.split("/")[1] for key in store.list("results/")}.intersection(manifests)
    return {manifest for manifest in manifests if next(iter(store.list(f"results/{manifest}/")), None)}


def _written_anew(settings: Settings, manifests: set[str]) -> set[str]:
    """Those in whose place vetgate wrote other bytes, which wait in their own name."""
    return {manifest for manifest in manifests if vetted_in_place_of(settings, manifest) not in (None, manifest)}


def _canaries(store: Store, manifests: set[str], wrong: Callable[[str], object]) -> set[str]:
    found = set()
    for manifest in manifests.intersection(key.split("/")[1].removesuffix(".json") for key in store.list("canaries/")):
        try:
            record = read_record(store, manifest)
            if is_canary(store, record):
                found.add(manifest)
            else:
                who = record.submission.supplier
                wrong(f"{manifest}: expected canaries/{manifest}.json about a canary, got one about a model of {who}")
        except VetgateError:
            continue  # whoever reads its record next is told what is wrong with it
    return found


def _waiting(record: Record, now: float, lease: Lease | None) -> Waiting:
    if lease is None:
        return Waiting(record, None, False, 0.0)
    if lease.live(now):
        return Waiting(record, lease, True, lease.until)
    return Waiting(record, lease, False, due_after(lease))


def due_after(lease: Lease) -> float:
    """When work whose lease is no longer live is to be tried again, in seconds since the epoch."""
    # one that was killed ended before its lease ran out; when exactly is unknown
    if not lease.done:
        return 0.0
    doubled = 2.0 ** min(max(lease.attempt - 1, 0), 16)
    return lease.until + min(FIRST_PAUSE_SECONDS * doubled, LONGEST_PAUSE_SECONDS)

"""Sweep: whatever events and webhooks missed is found in store and registry, and started once.

Submissions without a result, vettings that died, versions in MLflow not taken in, and promotions that are due.
With every event lost, everything still gets vetted, only later.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from functools import partial

from flows.production.automatic import promote_all_due
from flows.vetting.give_up import give_up
from tasks.mlflow import submitted as registered
from tasks.records.attestations import taken_back
from tasks.records.ledger_state import ledger_state
from tasks.settings import Settings
from tasks.store.lease import read_lease
from tasks.store.open import open_store
from tasks.vetting import queue
from vetgate.errors import BadSubmission, VetgateError
from vetgate.shape import Blob
from vetgate.verdict.policy import load_policy

RETRY_SECONDS = 900
# (deployment, parameters, idempotency key): starts a run somewhere, unless one with this key was started before
Start = Callable[[str, Blob, str], None]


def sweep(settings: Settings, start: Start, queued: Collection[str] = (), now: float | None = None) -> Blob:
    """Start what was missed, and say what. `queued` are manifests whose vetting is scheduled already."""
    moment = time.time() if now is None else now
    done: Blob = {"vetted": [], "given_up": [], "taken": [], "promoted": [], "at_work": 0, "queued": 0, "errors": []}
    most, (decided, revoked) = load_policy(settings.policy).max_attempts, _asked_of_the_ledger(settings, done)
    for item in queue.waiting(settings, decided, moment, done["errors"].append, revoked):
        if item.at_work:
            done["at_work"] += 1
        elif item.record.id in queued:
            done["queued"] += 1
        elif item.attempts >= most and decided(item.record.id):
            # leases and results can be anybody's, and end no verdict
            done["errors"].append(
                f"{item.record.id}: expected a result beside its verdict in the ledger, got none after {item.attempts} "
                "vettings; see who can write to results/ and leases/, and run `vetgate vet` on it"
            )
        elif item.attempts >= most:
            tried(done, partial(_give_up, settings, item.record.id, done))
        elif item.due <= moment:
            parameters = {"manifest_sha256": item.record.id, "unless_vetted": True}
            start("vet/default", parameters, f"vet:{item.record.id}:{item.attempts + 1}:{_period(moment)}")
            done["vetted"].append(item.record.id)
    tried(done, lambda: done["taken"].extend(_take_versions(settings, start, moment)))
    tried(done, lambda: done["promoted"].extend(promote_all_due(settings, done["errors"].append)))
    return done


def _asked_of_the_ledger(settings: Settings, done: Blob) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    """Whether it has a verdict on a manifest, and whether that was revoked."""
    try:
        state = ledger_state(settings)
    except VetgateError as error:
        # nothing is vetted twice for a ledger that is broken
        done["errors"].append(str(error))
        return lambda manifest: True, lambda manifest: False
    return lambda manifest: state.verdict(manifest) is not None, partial(taken_back, state)


def _give_up(settings: Settings, manifest_sha256: str, done: Blob) -> None:
    done["given_up"].append(give_up(settings, manifest_sha256)["manifest_sha256"])


def _take_versions(settings: Settings, start: Start, moment: float) -> list[str]:
    taken = []
    for found in list(registered.unknown_versions(settings)):
        if not _note_own_version(settings, found) and _is_due(settings, found, moment):
            parameters = {"model": found.model, "version": found.version}
            start("take-registered/default", parameters, f"take:{found.model}:{found.version}:{_period(moment)}")
            taken.append(f"{found.model}/{found.version}")
    return taken


def _is_due(settings: Settings, found: registered.Supplied, moment: float) -> bool:
    """Whether nobody is taking a version in, and the pause after the last try is over."""
    try:
        work = registered.work_of(found.model, found.version)
    except BadSubmission:
        return True
    lease = read_lease(open_store(settings), work, settings.lease_seconds, moment)
    return lease is None or not (lease.live(moment) or queue.due_after(lease) > moment)


def _note_own_version(settings: Settings, found: registered.Supplied) -> bool:
    """Note a version that a vetting registered itself, its source quarantined bytes; whether it was one.

    The key of a quarantined directory is the digest of what lies there, so nothing needs to be read.
    """
    store = open_store(settings)
    match = re.search(r"/quarantine/([0-9a-f]{64})$", found.source)
    if match is None or found.source != store.url(f"quarantine/{match[1]}"):
        return False
    if not store.exists(f"submissions/{match[1]}.json"):
        return False
    registered.note(store, found.model, found.version, {"manifest_sha256": match[1]})
    return True


def _period(moment: float) -> int:
    # a run that died before it could say so is started anew in the next one; twice is once, because of the lease
    return int(moment // RETRY_SECONDS)


def tried(done: Blob, work: Callable[[], object]) -> None:
    """One part that fails must not keep the others from being done; the sweep still ends as failed."""
    try:
        work()
    except Exception as error:
        done["errors"].append(str(error) if isinstance(error, VetgateError) else repr(error))

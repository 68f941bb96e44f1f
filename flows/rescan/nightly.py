"""Rescan: what is in production under a verdict that is out of date is vetted again; the rest costs a comparison.

A rescan alarms less often than a first vetting and takes nothing back before a second independent run agrees. Canaries
run first: if one comes out wrong, the batch decides nothing. Killed and started again, a batch goes on where it was.
One of a single name is asked for because of what guards reject there: it vets what is under it again, out of date or
not, but for what was vetted within a day.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from flows.production.reconcile import reconcile
from flows.production.watch import Watch, coverages, standings, watch
from flows.rescan.batch import (
    CanaryOutcome,
    Examine,
    Renewal,
    batch_name,
    in_turn,
    once,
    renew,
    run_canaries,
)
from flows.rescan.stale import Present, due_for_hashing, outdated_verdicts
from tasks import events
from tasks.mlflow.aliases import Registered, in_production, rehash
from tasks.mlflow.heads import publish_head
from tasks.records.coverage import Coverage
from tasks.records.ledger_chain import append, head
from tasks.records.rescans import record_key, save_rescan
from tasks.settings import Settings
from tasks.store.lease import leased
from vetgate.errors import BadSubmission, Denied, VetgateError
from vetgate.formats.model_name import MODEL_NAME, RULE
from vetgate.shape import Blob
from vetgate.trust.strict_json import as_time

INCONCLUSIVE_EVENT = "vetgate.rescan.inconclusive"
LEASE = "rescan"
# whoever sends a model what its guards reject could have it vetted again all day
FRESH = timedelta(days=1)
T = TypeVar("T")


@dataclass
class Batch:
    """One rescan: what was looked at, of everything or `only` of one name, and what came of it."""

    name: str
    only: str | None
    seen: Watch
    present: Present
    covering: list[tuple[Registered, Coverage]]
    uncovered: list[Registered]
    errors: list[str] = field(default_factory=list)
    hashed: int = 0
    taken_back: list[Blob] = field(default_factory=list)
    canaries: list[CanaryOutcome] = field(default_factory=list)
    renewals: list[Renewal] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def conclusive(self) -> bool:
        """Whether no canary came out wrong."""
        return not any(outcome.wrong for outcome in self.canaries)


def rescan(
    settings: Settings,
    examine: Examine,
    name: str | None = None,
    *,
    at_once: int = 1,
    now: datetime | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Blob:
    """What a batch found and did, only under prod.<name> where one is given.

    `examine` runs the detectors on a manifest under the name of a run, somewhere.
    Raises StoreError when the registry does not answer or another batch is at work. `on_step` is given every step after
    it is done.
    """
    if name is not None and not MODEL_NAME.fullmatch(name):
        raise BadSubmission(f"expected as name {RULE}; got {name!r:.200}")
    with leased(settings, LEASE) as lease:
        since = head(settings)
        batch = _begun(settings, name, now)
        # what nothing covers is for `reconcile`; a batch that was killed may have left some for it
        _reconcile(batch, {item.name for item in batch.uncovered})
        on_step("compared")
        _timed(batch, "hash", lambda: _hash_some(batch))
        on_step("hashed")
        stale = _timed(batch, "compare", lambda: _stale(batch))
        if stale:
            ask = Asking(batch, examine, at_once, lease.check, on_step)
            _timed(batch, "vet", lambda: ask.vet(stale))
        _reconcile(batch, {renewal.name for renewal in batch.renewals if renewal.decision == "FAIL"})
        on_step("demoted")
        lease.check()
        return _finished(batch, len(stale), since)


@dataclass(frozen=True)
class Asking:
    """How the models of a batch are examined and judged."""

    batch: Batch
    examine: Examine
    at_once: int
    check: Callable[[], None]
    on_step: Callable[[str], None]

    def vet(self, stale: dict[str, Coverage]) -> None:
        """Run the canaries, and then renew or reject each verdict."""
        batch, settings = self.batch, self.batch.seen.settings
        if batch.present.policy.rescan.canaries:
            batch.canaries += run_canaries(settings, self.examine, batch.name, self.at_once)
            self.on_step("canaries vetted")
        if not batch.conclusive:
            return

        def one(item: tuple[str, Coverage]) -> Renewal | VetgateError:
            try:
                return renew(settings, self.examine, item[0], item[1].promotion.name, self.check)
            except VetgateError as error:
                return error

        for (manifest, _), found in in_turn(one, list(stale.items()), self.at_once):
            if isinstance(found, VetgateError):
                batch.errors.append(f"{manifest}: {found}")
            else:
                batch.renewals.append(found)
            self.on_step(f"vetted {manifest}")


def _begun(settings: Settings, only: str | None, now: datetime | None) -> Batch:
    seen = watch(settings, now)
    started = time.monotonic()
    present = Present.of(seen)
    held = [item for item in in_production(settings) if only in (None, item.name)]
    answers = list(zip(held, coverages(seen, held), strict=True))
    covering = [(item, answer) for item, answer in answers if isinstance(answer, Coverage)]
    wrong = [any(isinstance(name.answer, Denied) for name in standings(seen, *given)) for given in answers]
    uncovered = [item for (item, _), found in zip(answers, wrong, strict=True) if found]
    batch = Batch(batch_name(seen), only, seen, present, covering, uncovered)
    batch.errors += [str(answer) for _, answer in answers if not isinstance(answer, Coverage | Denied)]
    batch.seconds["read"] = time.monotonic() - started
    return batch


def _hash_some(batch: Batch) -> None:
    """Hash the bytes that are due tonight; altered ones go at once."""
    altered = set()
    for item, coverage in batch.covering:
        if not due_for_hashing(coverage.manifest, batch.seen.now):
            continue
        try:
            rehash(batch.seen.settings, batch.seen.store, coverage.promotion)
            batch.hashed += 1
        except Denied:
            altered.add((item.name, item.version))
        except VetgateError as error:
            batch.errors.append(str(error))
    _reconcile(batch, {name for name, _ in altered})
    gone = altered & {(item["name"], item["version"]) for item in batch.taken_back}
    batch.covering = [(item, c) for item, c in batch.covering if (item.name, item.version) not in gone]


def _stale(batch: Batch) -> dict[str, Coverage]:
    # a model in its grace has failed already; `reconcile` carries that out
    covering = {coverage.manifest: coverage for _, coverage in batch.covering if not coverage.grace}
    if batch.only is not None:
        since = batch.seen.now - FRESH
        return {m: coverage for m, coverage in covering.items() if as_time(coverage.claims["issued"], "issued") < since}
    reasons = outdated_verdicts(batch.present, list(covering.values()))
    batch.errors += [f"{manifest}: {why}" for manifest, why in reasons.items() if isinstance(why, VetgateError)]
    return {m: covering[m] for m, why in reasons.items() if why and not isinstance(why, VetgateError)}


def _finished(batch: Batch, stale: int, since: int) -> Blob:
    """The record of the batch, kept in the store, and entered into the ledger when it decided anything."""
    settings = batch.seen.settings
    blob: Blob = {
        "batch": batch.name,
        "verdict": "DONE" if batch.conclusive else "INCONCLUSIVE",
        "checked": len(batch.covering) + len(batch.uncovered),
        "uncovered": len(batch.uncovered),
        "unchanged": len({coverage.manifest for _, coverage in batch.covering}) - stale,
        "stale": stale,
        "hashed": batch.hashed,
        "canaries": [outcome.to_json() for outcome in batch.canaries],
        "vetted": [renewal.to_json() for renewal in batch.renewals],
        "taken_back": batch.taken_back,
        "errors": batch.errors,
        "seconds": {what: round(spent, 3) for what, spent in batch.seconds.items()},
    }
    if stale:
        subject = {k: blob[k] for k in ("batch", "verdict", "stale", "canaries")}
        counted = {d: [r.manifest for r in batch.renewals if r.decision == d] for d in ("PASS", "WAIVED", "FAIL")}
        append(settings, "rescan", {**subject, "vetted": counted}, once=once(batch.name), since=since)
    publish_head(settings)
    if not save_rescan(settings, batch.seen.store, blob):
        batch.errors.append(
            f"expected to write {record_key(batch.name)}, got another object in its place: see who wrote it"
        )
    if not batch.conclusive:
        wrong = [outcome.wrong for outcome in batch.canaries if outcome.wrong]
        events.emit(INCONCLUSIVE_EVENT, f"rescan.{batch.name}", {"batch": batch.name, "wrong": wrong}, once=batch.name)
    return blob


def _reconcile(batch: Batch, names: set[str]) -> None:
    """Take back what nothing covers under these names; one that fails must not keep the others from it."""
    for name in sorted(names):
        try:
            batch.taken_back += reconcile(batch.seen.settings, name)["taken_back"]
        except VetgateError as error:
            batch.errors.append(str(error))


def _timed(batch: Batch, what: str, work: Callable[[], T]) -> T:
    started = time.monotonic()
    try:
        return work()
    finally:
        batch.seconds[what] = time.monotonic() - started


def exit_code(blob: Blob) -> int:
    """3 when a canary came out wrong, 2 when something could not be done, 1 when something was taken back, else 0."""
    if blob["verdict"] == "INCONCLUSIVE":
        return 3
    return 2 if blob["errors"] else 1 if blob["taken_back"] else 0

"""The parts of a rescan's batch: its name, its canaries, and one model vetted again, twice if it raises an alarm."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import TypeVar

from flows.gate.client import decision
from flows.gate.decided import Answer
from flows.gate.question import FIRST, SECOND, Question
from flows.production.watch import Watch
from flows.rescan.canaries import Canary, canaries
from tasks.records.attestations import attestation_at
from tasks.records.rescans import record_key
from tasks.settings import Settings
from tasks.store.open import open_store
from vetgate.errors import Removed, StoreError, VetgateError
from vetgate.shape import Blob

# (settings, manifest, name of the run) -> what the gate is asked to judge
Examine = Callable[[Settings, str, str], Question]
_asking = threading.Lock()
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Renewal:
    """What became of one verdict; `attestation` is None where nothing was signed, and the old verdict stays."""

    name: str
    manifest: str
    decision: str
    second: bool
    attestation: str | None
    demote_after: str | None
    reasons: list[str]

    def to_json(self) -> Blob:
        """A JSON object."""
        return asdict(self)


def batch_name(seen: Watch) -> str:
    """The day and the first number that neither the ledger nor the store knows of a batch that was finished.

    Whoever removes the record of a batch does not have its canaries' evidence taken for that of the next.
    """
    day = seen.now.date().isoformat()
    return next(name for number in count(1) if not _finished(seen, name := f"{day}-{number}"))


def once(batch: str) -> str:
    """The name of the one entry in the ledger about a batch that decided anything."""
    return f"rescan {batch}"


def _finished(seen: Watch, batch: str) -> bool:
    entered = not isinstance(seen.state, Removed) and seen.state.entered(once(batch)) is not None
    return entered or seen.store.exists(record_key(batch))


@dataclass(frozen=True)
class CanaryOutcome:
    """What came out for one canary, and what is wrong about it."""

    canary: str
    decision: str | None
    wrong: str | None

    def to_json(self) -> Blob:
        """A JSON object."""
        return asdict(self)


def run_canaries(settings: Settings, examine: Examine, batch: str, at_once: int) -> list[CanaryOutcome]:
    """What came out for each canary, and what is wrong about it; one that could not be examined is wrong."""

    def one(canary: Canary) -> CanaryOutcome:
        try:
            question = _examined(settings, examine, canary.manifest, f"canary {batch}")
            verdict = _ask(settings, replace(question, sign=False)).decided.verdict
        except VetgateError as error:
            return CanaryOutcome(canary.name, None, f"{canary.name} could not be examined: {error}")
        return CanaryOutcome(canary.name, verdict.decision, canary.wrong(verdict))

    outcomes = {canary.name: found for canary, found in in_turn(one, list(canaries(settings)), at_once)}
    return [outcomes[name] for name in sorted(outcomes)]


def renew(settings: Settings, examine: Examine, manifest: str, name: str, check: Callable[[], None]) -> Renewal:
    """Vet a model that is in production again, from its recorded seed; a FAIL counts once a second seed agrees."""
    first = _examined(settings, examine, manifest, FIRST)
    check()
    answer = _ask(settings, first)
    second = answer.wants_second
    if second:
        confirming = _examined(settings, examine, manifest, SECOND)
        check()
        answer = _ask(settings, replace(first, second=confirming))
    key = answer.attestation
    if key is None:
        return Renewal(name, manifest, "INCONCLUSIVE", second, None, None, list(answer.decided.verdict.reasons))
    signed = attestation_at(open_store(settings), key).claims
    return Renewal(name, manifest, signed["verdict"], second, key, signed["demote_after"], list(signed["reasons"]))


def in_turn(work: Callable[[A], B], items: list[A], at_once: int) -> Iterator[tuple[A, B]]:
    """Each item with what `work` made of it: here, one after the other, or in threads as they get done."""
    if at_once <= 1:
        for item in items:
            yield item, work(item)
        return
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(work, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _examined(settings: Settings, examine: Examine, manifest: str, run: str) -> Question:
    """What was found of this run on this model; raises StoreError for an examination of anything else."""
    found = examine(settings, manifest, run)
    if not found.only_says_what_was_found(manifest, run):
        raise StoreError(
            f"expected what was found of {manifest} in run {run!r}, got a question about {found.manifest:.80} in run "
            f"{found.run!r:.80} for a {found.purpose:.80}; examine it again"
        )
    return found


def _ask(settings: Settings, question: Question) -> Answer:
    # one question at a time: the gate's process answers in the order in which it is asked
    with _asking:
        return decision(settings, replace(question, purpose="rescan"))

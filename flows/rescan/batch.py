"""The parts of a rescan's batch: its name, its canaries, and one model vetted again, twice if it raises an alarm."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from flows.gate.client import gate
from flows.production.watch import Watch
from flows.rescan.canaries import Canary, canaries
from tasks.records.attestations import attestation_at
from tasks.settings import Settings
from tasks.store.open import open_store
from vetgate.errors import VetgateError

Blob = dict[str, Any]
# (settings, manifest, name of the run) -> what the gate is asked to judge
Examine = Callable[[Settings, str, str], Blob]
FIRST, SECOND = "", "second"
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
    """The day and a number: that of a batch of this day that was not finished, else the next."""
    day = seen.now.date().isoformat()
    return f"{day}-{1 + sum(1 for _ in seen.store.list(f'rescans/{day}-'))}"


def run_canaries(settings: Settings, examine: Examine, batch: str, at_once: int) -> list[Blob]:
    """What came out for each canary, and what is wrong about it; one that could not be examined is wrong."""

    def one(canary: Canary) -> Blob:
        try:
            verdict = _ask(settings, examine(settings, canary.manifest, f"canary {batch}") | {"sign": False})["verdict"]
        except VetgateError as error:
            return {"canary": canary.name, "decision": None, "wrong": f"{canary.name} could not be examined: {error}"}
        return {"canary": canary.name, "decision": verdict["decision"], "wrong": canary.wrong(verdict)}

    outcomes = {canary.name: blob for canary, blob in in_turn(one, list(canaries(settings)), at_once)}
    return [outcomes[name] for name in sorted(outcomes)]


def renew(settings: Settings, examine: Examine, manifest: str, name: str, check: Callable[[], None]) -> Renewal:
    """Vet a model that is in production again, from its recorded seed; a FAIL counts once a second seed agrees."""
    first = examine(settings, manifest, FIRST)
    check()
    answer = _ask(settings, first)
    second = bool(answer.get("wants_second"))
    if second:
        confirming = examine(settings, manifest, SECOND)
        check()
        answer = _ask(settings, first | {"second": confirming})
    key = answer["attestation"]
    if key is None:
        return Renewal(name, manifest, "INCONCLUSIVE", second, None, None, list(answer["verdict"]["reasons"]))
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


def _ask(settings: Settings, request: Blob) -> Blob:
    # one question at a time: the gate's process answers in the order in which it is asked
    with _asking:
        return gate(settings).decide(request | {"purpose": "rescan"})

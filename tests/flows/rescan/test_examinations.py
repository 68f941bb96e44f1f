"""What lies in the store under examinations/ or of another night, and what a rescan makes of it.

Prefect is stood for by a function; the gate, its process, the store and all that is signed are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.gate.client import gate
from flows.gate.decide import answer
from flows.gate.question import FIRST, SECOND, Question, examination
from flows.production.watch import watch
from flows.rescan import batch, nightly_flow
from flows.rescan.batch import batch_name, renew, run_canaries
from flows.rescan.canaries import Canary
from flows.rescan.nightly_flow import on_the_pool
from tasks.records.attestations import newest_attestation
from tasks.records.ledger_chain import append
from tasks.records.ledger_state import ledger_state
from tasks.records.rescans import record_key
from tasks.vetting import signed_results
from tests.deciding import BACKDOORED, CLEAN, TARGET, Court
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import StoreError
from vetgate.shape import Blob
from vetgate.trust.keys import load_key, utc_now
from vetgate.trust.statements import EXAMINATION, sign_statement
from vetgate.trust.strict_json import time_text

STATE = SimpleNamespace(state=SimpleNamespace(name="Completed"))


@dataclass
class Worker:
    """A worker of the pool: what it finds by manifest and run; `before` is what somebody does first, with the key."""

    court: Court
    finds: dict[tuple[str, str], float | None]
    asked: list[Blob] = field(default_factory=list)
    before: Callable[[Blob], object] = lambda parameters: None
    works: bool = True

    def __call__(self, deployment: str, *, parameters: Blob, **more: Any) -> object:
        self.asked.append(parameters)
        self.before(parameters)
        if self.works:
            manifest, run = parameters["manifest_sha256"], parameters["run"]
            self.signed(self.court.request(manifest, self.finds[manifest, run], run), manifest, run, parameters["key"])
        return STATE

    def signed(self, found: Blob, manifest: str, run: str, key: str) -> None:
        blob = Question.from_json(found).to_json()
        signed_results.save(self.court.settings, EXAMINATION, examination(manifest, run, key), blob)


@dataclass(frozen=True)
class Night:
    """A model that passed once and in which the detectors now see a backdoor."""

    court: Court
    manifest: str
    worker: Worker

    def renewed(self) -> batch.Renewal:
        settings = self.court.settings
        return renew(settings, on_the_pool(settings), self.manifest, "digits", lambda: None)

    @property
    def verdict(self) -> str:
        newest = newest_attestation(ledger_state(self.court.settings), self.manifest)
        assert newest is not None
        return str(newest.claims["verdict"])


@pytest.fixture
def court(tmp_path: Path) -> Iterator[Court]:
    court = Court(tmp_path / "home", tmp_path)
    yield court
    gate(court.settings).close()


@pytest.fixture
def night(court: Court, monkeypatch: pytest.MonkeyPatch) -> Night:
    manifest = court.submit(b"weights")
    assert answer(court.settings, court.request(manifest, CLEAN))["verdict"]["decision"] == "PASS"
    worker = Worker(court, {(manifest, run): BACKDOORED for run in (FIRST, SECOND)})
    monkeypatch.setattr(nightly_flow, "run_deployment", worker)
    return Night(court, manifest, worker)


def planted(night: Night, key: str, run: str, signer: str) -> None:
    """A question in which nothing was found, in the place of the examination asked for, signed by somebody."""
    nothing = night.court.request(night.manifest, CLEAN, run) | {"evidence": {}}
    found = Question.from_json(nothing).to_json()
    about = examination(night.manifest, run, key)
    keys = {"the gate": night.court.settings.gate_key}
    by = load_key(keys.get(signer) or night.court.person(f"{signer}-{run or 'first'}", signer))
    stated = {"issued": time_text(utc_now()), "manifest": night.manifest, "about": about, "result": sha256_json(found)}
    envelope = sign_statement(EXAMINATION, stated, by)
    name = f"{sha256_json(about)}-{'0' * 64}"
    # the old, unsigned form beside it
    for path, blob in ((name, {"signed": envelope, "found": found}), (key, found)):
        night.court.store.create(f"examinations/{night.manifest}/{path}.json", canonical_json(blob))


def test_two_fails_that_workers_signed_are_one(night: Night) -> None:
    assert (night.renewed().decision, night.verdict) == ("FAIL", "FAIL")
    assert [asked["run"] for asked in night.worker.asked] == [FIRST, SECOND]


@pytest.mark.parametrize("signer", ["the gate", "approver", "submitter"])
def test_what_no_vetter_signed_keeps_no_fail_away(night: Night, signer: str) -> None:
    night.worker.before = lambda asked: planted(night, asked["key"], asked["run"], signer)
    assert (night.renewed().decision, night.verdict) == ("FAIL", "FAIL")


@pytest.mark.parametrize("signer", ["the gate", "approver", "submitter"])
def test_where_nothing_else_lies_there_the_model_is_an_error(night: Night, signer: str) -> None:
    night.worker.works = False
    night.worker.before = lambda asked: planted(night, asked["key"], asked["run"], signer)
    with pytest.raises(StoreError, match=f"expected an examination of {night.manifest}"):
        night.renewed()
    assert night.verdict == "PASS"


@pytest.mark.parametrize("moved", ["to the second run", "to another batch", "to another model"])
def test_what_a_vetter_signed_for_another_place_is_passed_over(night: Night, moved: str) -> None:
    court, other = night.court, night.court.submit(b"other")

    def copied(asked: Blob) -> None:
        manifest = other if moved == "to another model" else night.manifest
        run = SECOND if moved == "to the second run" else FIRST
        key = "f" * 64 if moved == "to another batch" else asked["key"]
        night.worker.signed(court.request(manifest, CLEAN, run), manifest, run, key)
        (made,) = court.store.list(f"examinations/{manifest}/")
        digest = made.removesuffix(".json").rpartition("-")[2]
        path = f"examinations/{night.manifest}/{sha256_json(examination(night.manifest, FIRST, asked['key']))}-{digest}"
        court.store.create(f"{path}.json", court.store.read(made))

    night.worker.before, night.worker.works = copied, False
    with pytest.raises(StoreError, match="expected an examination"):
        night.renewed()
    assert night.verdict == "PASS"


@pytest.mark.parametrize(
    "change", [{"manifest": "other"}, {"run": SECOND}, {"sign": False}, {"purpose": "rescan"}, {"second": "itself"}]
)
def test_a_question_that_says_more_than_was_asked_is_an_error(night: Night, change: dict[str, Any]) -> None:
    court, settings = night.court, night.court.settings
    question = Question.from_json(court.request(night.manifest, CLEAN))
    if "manifest" in change:
        change = {"manifest": court.submit(b"other")}
    if "second" in change:
        change = {"second": replace(question, run=SECOND)}
    with pytest.raises(StoreError, match=f"expected what was found of {night.manifest}"):
        renew(settings, lambda *asked: replace(question, **change), night.manifest, "digits", lambda: None)
    assert night.verdict == "PASS"


class TestCanaries:
    """What comes out for canaries is found tonight."""

    @pytest.fixture
    def flock(self, court: Court, monkeypatch: pytest.MonkeyPatch) -> dict[str, float | None]:
        """What is found for either canary, which are no trained networks here."""
        clean, bad = court.submit(b"clean"), court.submit(b"bad")
        made = (Canary("canary-clean", clean, None), Canary("canary-backdoored", bad, TARGET))
        monkeypatch.setattr(batch, "canaries", lambda settings: made)
        return {clean: CLEAN, bad: BACKDOORED}

    @pytest.mark.parametrize("of", ["canary 2026-01-01-1", FIRST, SECOND])
    def test_evidence_of_another_run_is_none(self, court: Court, flock: dict[str, float | None], of: str) -> None:
        name = batch_name(watch(court.settings))

        def replayed(settings: Any, manifest: str, run: str) -> Question:
            return Question.from_json(court.request(manifest, flock[manifest], of))

        def renamed(settings: Any, manifest: str, run: str) -> Question:
            return replace(replayed(settings, manifest, run), run=run)

        for examine in (replayed, renamed):
            outcomes = run_canaries(court.settings, examine, name, 1)
            assert all("could not be examined" in str(outcome.wrong) for outcome in outcomes) and len(outcomes) == 2

    def test_that_of_this_night_counts(self, court: Court, flock: dict[str, float | None]) -> None:
        def examine(settings: Any, manifest: str, run: str) -> Question:
            return Question.from_json(court.request(manifest, flock[manifest], run))

        outcomes = run_canaries(court.settings, examine, batch_name(watch(court.settings)), 1)
        assert [(outcome.decision, outcome.wrong) for outcome in outcomes] == [("FAIL", None), ("PASS", None)]


class TestName:
    """A batch has a name that no finished one had, whatever lies under rescans/."""

    def test_one_that_the_ledger_knows_is_not_given_again(self, court: Court) -> None:
        answer(court.settings, court.request(court.submit(b"x"), CLEAN))
        day = utc_now().date().isoformat()
        for number in (1, 2):
            assert batch_name(watch(court.settings)) == f"{day}-{number}"
            append(court.settings, "rescan", {"batch": f"{day}-{number}"}, once=batch.once(f"{day}-{number}"))
        assert batch_name(watch(court.settings)) == f"{day}-3"

    @pytest.mark.parametrize("laid", ["{day}-1", "{day}-2", "{yesterday}-1", "{day}-7", "{day}-x"])
    def test_one_that_was_laid_there_is_not_given_either(self, court: Court, laid: str) -> None:
        answer(court.settings, court.request(court.submit(b"x"), CLEAN))
        today = utc_now()
        name = laid.format(day=today.date().isoformat(), yesterday=(today - timedelta(days=1)).date().isoformat())
        court.store.create(record_key(name), b"{}")
        given = batch_name(watch(court.settings))
        assert given != name and not court.store.exists(record_key(given))

"""What was decided stands: only a person has it decided anew, and nothing brings back by itself what was revoked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.gate.decide import answer
from flows.gate.revoke import revoke
from flows.production.automatic import promote_all_due
from flows.vetting.sweep import sweep
from tasks.records.attestations import newest_attestation, save_attestation
from tasks.records.ledger_chain import entries
from tasks.records.ledger_entries import catch_up
from tasks.records.ledger_state import ledger_state
from tests.databases import with_registry
from tests.deciding import BACKDOORED, CLEAN, METHOD, ODD, Court
from tests.production import signed_verdict
from vetgate.digest import canonical_json
from vetgate.trust import attest


@pytest.fixture
def court(tmp_path: Path) -> Court:
    return Court(tmp_path / "home", tmp_path)


def ask(court: Court, manifest: str, effect: float | None, **more: Any) -> dict[str, Any]:
    return answer(court.settings, court.request(manifest, effect, **more))


def verdicts(court: Court) -> list[str]:
    return [entry.subject["verdict"] for entry in entries(court.store) if entry.kind == "verdict"]


@pytest.mark.parametrize(
    ("before", "after"), [(CLEAN, {"effect": BACKDOORED}), (BACKDOORED, {"effect": CLEAN}), (ODD, {"refused": True})]
)
def test_other_evidence_changes_a_verdict_only_when_a_person_asks(
    court: Court, before: float | None, after: dict[str, Any]
) -> None:
    manifest = court.submit(b"weights")
    first = ask(court, manifest, before)
    found = {"effect": before} | after
    assert ask(court, manifest, **found) == first
    assert len(verdicts(court)) == 1
    assert ask(court, manifest, **found, asked=True)["attestation"] != first["attestation"]
    assert len(verdicts(court)) == 2


def by_a_person(court: Court, manifest: str, digest: str) -> None:
    revoke(court.settings, manifest, "found by hand")


def by_a_stranger(court: Court, manifest: str, digest: str) -> None:
    court.store.create(f"revocations/{digest}.json", b"{}")


def in_the_trust_root(court: Court, manifest: str, digest: str) -> None:
    root = json.loads(court.settings.trust_root.read_bytes())
    court.settings.trust_root.write_bytes(canonical_json(root | {"revoked": [digest]}))


def by_an_object_that_is_gone(court: Court, manifest: str, digest: str) -> None:
    by_a_person(court, manifest, digest)
    Path(court.settings.store, f"revocations/{digest}.json").unlink()


REVOKED: list[Callable[[Court, str, str], None]] = [
    by_a_person,
    by_a_stranger,
    in_the_trust_root,
    by_an_object_that_is_gone,
]


@pytest.mark.parametrize("take_back", REVOKED)
def test_what_was_revoked_gets_another_verdict_only_when_a_person_asks(
    court: Court, take_back: Callable[[Court, str, str], None]
) -> None:
    manifest = court.submit(b"weights")
    ask(court, manifest, CLEAN)
    take_back(court, manifest, ledger_state(court.settings).decided("")[manifest])
    for purpose in ("submission", "rescan"):
        for effect in (CLEAN, BACKDOORED):
            answered = ask(court, manifest, effect, purpose=purpose)
            assert answered["kind"] in ("Revoked", "Removed"), answered
    assert verdicts(court) == ["PASS"]
    assert ask(court, manifest, CLEAN, asked=True)["verdict"]["decision"] == "PASS"
    assert verdicts(court) == ["PASS", "PASS"]


@pytest.mark.parametrize("purpose", ["submission", "rescan", "waived"])
def test_a_pass_that_was_signed_before_a_revocation_is_not_entered_after_it(court: Court, purpose: str) -> None:
    manifest = court.submit(b"weights")
    ask(court, manifest, CLEAN)
    verdict = "WAIVED" if purpose == "waived" else "PASS"
    left_out = signed_verdict(
        court.settings, manifest, verdict, purpose="rescan" if purpose == "rescan" else "submission"
    )
    save_attestation(court.store, manifest, left_out)
    digest = ledger_state(court.settings).decided("")[manifest]
    revoke(court.settings, digest, "found by hand")
    catch_up(court.settings)
    assert verdicts(court) == ["PASS"]
    newest = newest_attestation(ledger_state(court.settings), manifest)
    assert newest is not None and attest.digest(newest.envelope) == digest


@pytest.mark.parametrize("harm", ["gone", "words", "another", "junk"])
def test_a_decision_that_was_not_kept_as_it_was_signed_is_republished_by_nobody(court: Court, harm: str) -> None:
    manifest, other = court.submit(b"weights"), court.submit(b"another")
    first, second = ask(court, manifest, BACKDOORED), ask(court, other, CLEAN)
    key = f"verdicts/{manifest}/{first['key']}.json"
    file, said = Path(court.settings.store, key), json.loads(court.store.read(key))
    file.unlink()
    if harm == "words":
        said["verdict"]["reasons"] = ["nothing was found"]
        file.write_text(json.dumps(said))
    elif harm == "another":
        shutil.copy(Path(court.settings.store, f"verdicts/{other}/{second['key']}.json"), file)
    elif harm == "junk":
        file.write_text("[1]")
    answered = ask(court, manifest, CLEAN)
    assert answered["kind"] == "Denied" and key in answered["error"] and "`vetgate vet`" in answered["error"]
    assert ask(court, manifest, BACKDOORED, asked=True)["attestation"] == first["attestation"]


def test_what_failed_in_one_method_is_republished_in_the_same_words(court: Court) -> None:
    manifest = court.submit(b"weights")
    failed = {"evidence": {}, "failures": {METHOD: "out of memory"}}
    first = ask(court, manifest, CLEAN, **failed)
    assert ask(court, manifest, CLEAN) == first and first["verdict"]["decision"] == "INCONCLUSIVE"


@pytest.mark.parametrize("result", ["never published", "removed"])
def test_what_was_revoked_comes_back_to_production_by_itself_neither_vetted_nor_promoted(
    tmp_path: Path, result: str
) -> None:
    court = Court(with_registry(tmp_path / "home"), tmp_path, promotion={"automatic": "champion"})
    settings, started = court.settings, []
    manifest = court.submit(b"weights")
    key = ask(court, manifest, CLEAN)["attestation"].replace("attestations/", "results/")
    if result == "removed":
        court.store.create(key, b"{}")
    revoke(settings, manifest, "found by hand")
    Path(settings.store, key).unlink(missing_ok=True)
    done = sweep(settings, lambda *asked: started.append(asked))
    assert (started, done["vetted"], done["given_up"], done["errors"]) == ([], [], [], [])
    assert ask(court, manifest, CLEAN)["kind"] == "Revoked"
    assert [("revoked" in given["refused"]) for given in promote_all_due(settings)] == [True]
    assert court.aliases() == {}
    ask(court, manifest, CLEAN, asked=True)
    assert [given["manifest_sha256"] for given in promote_all_due(settings)] == [manifest]

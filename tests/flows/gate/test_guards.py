"""What the gate attests of run-time guards: what a trusted vetter signed for this model, and no verdict hangs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.gate.decide import answer
from flows.gate.question import GUARDING, Question
from flows.gate.waive import approve, waive
from tasks.guards.fit import pins, settings_digest
from tasks.records.attestations import newest_attestation
from tasks.records.ledger_state import ledger_state
from tasks.vetting import intake, signed_results
from tasks.vetting.results import GuardRecord, ResultGuard
from tests.deciding import BACKDOORED, CLEAN, TARGET, Court
from vetgate.digest import canonical_json, sha256_json
from vetgate.role import guard_roles
from vetgate.trust import dsse
from vetgate.trust.keys import key_id, load_key, utc_now
from vetgate.trust.statements import GUARDS, sign_statement
from vetgate.trust.strict_json import time_text
from vetgate.verdict.policy import load_policy

NAMES = sorted(guard_roles())[:2]
RATE = 0.04
PACKAGE = "ab" * 32
GUARD = {"methods": NAMES, "false_rejection_rate": RATE, "action": "log-only"}


@pytest.fixture
def court(tmp_path: Path) -> Court:
    return Court(tmp_path / "home", tmp_path, guard=GUARD)


def about(court: Court, manifest: str, run: str = GUARDING, **more: Any) -> dict[str, Any]:
    """All that guards on a submission depend on."""
    record, policy = intake.read_record(court.store, manifest), load_policy(court.settings.policy).guard
    return {
        "manifest": manifest,
        "guards": pins({name: {} for name in policy.methods}),
        "rate": policy.false_rejection_rate,
        "max_slowdown": policy.max_slowdown,
        "data": {},
        "run": run,
        "seed_commitment": intake.seed_of(court.settings, record, run).commitment,
        **more,
    }


def record(**more: Any) -> dict[str, Any]:
    """A record of which the first guard was chosen."""
    guards = [ResultGuard(NAMES[0], True, rate=RATE), *(ResultGuard(name, False, "too slow") for name in NAMES[1:])]
    return GuardRecord(tuple(guards), PACKAGE, 0.03, 1.0).to_json() | more


def fitted(court: Court, manifest: str, found: dict[str, Any] | None = None, **changes: Any) -> str:
    """The key of what a trusted vetter signed."""
    signed = signed_results.save(court.settings, GUARDS, about(court, manifest, **changes), found or record())
    return signed.key


def asked(court: Court, manifest: str, effect: float | None, **more: Any) -> dict[str, Any]:
    answered = answer(court.settings, court.request(manifest, effect, **more))
    assert "error" not in answered, answered
    return answered


def attested(court: Court, manifest: str) -> Any:
    found = newest_attestation(ledger_state(court.settings), manifest)
    assert found is not None
    return found.claims["guards"]


@pytest.mark.parametrize("effect", [CLEAN, BACKDOORED])
def test_the_attestation_names_the_file_its_guards_and_what_becomes_of_an_alarm(
    court: Court, effect: float | None
) -> None:
    manifest = court.submit(b"weights")
    without = asked(court, court.submit(b"another"), effect)
    answered = asked(court, manifest, effect, guards=fitted(court, manifest))
    assert attested(court, manifest) == {
        "package": PACKAGE,
        "chosen": [{"name": NAMES[0], "rate": RATE, "code": pins({NAMES[0]: {}})[NAMES[0]]["code"]}],
        "rate": RATE,
        "action": "log-only",
        "vetter": key_id(load_key(court.settings.vetter_key)),
        "settings": settings_digest(pins({name: {} for name in NAMES}), load_policy(court.settings.policy).guard),
    }
    assert answered["verdict"] == without["verdict"], "no verdict depends on guards"


def test_without_any_it_names_none(court: Court) -> None:
    manifest = court.submit(b"weights")
    asked(court, manifest, CLEAN)
    assert attested(court, manifest) is None
    none = record(package=None, guards=[ResultGuard(name, False, "too slow").to_json() for name in NAMES])
    asked(court, manifest, CLEAN, guards=fitted(court, manifest, none), asked=True)
    assert attested(court, manifest) is None


def test_a_policy_that_turns_guards_off_attests_none(tmp_path: Path) -> None:
    court = Court(tmp_path / "home", tmp_path, guard=GUARD | {"enabled": False})
    manifest = court.submit(b"weights")
    asked(court, manifest, CLEAN, guards=fitted(court, manifest))
    assert attested(court, manifest) is None


def forged(court: Court, manifest: str, key: Ed25519PrivateKey) -> str:
    """The key of a record as a vetter writes it, signed by another."""
    known, found = about(court, manifest), record()
    stated = {"issued": time_text(utc_now()), "manifest": manifest, "about": known, "result": sha256_json(found)}
    envelope = sign_statement(GUARDS, stated, key)
    name = f"{sha256_json(known)}-{dsse.digest(envelope)}"
    court.store.create(f"guards/{manifest}/{name}.json", canonical_json({"signed": envelope, "found": found}))
    return name


@pytest.mark.parametrize("who", ["a stranger", "the gate", "approver", "nobody", "altered"])
def test_what_no_vetter_signed_is_not_attested_and_the_verdict_stands(
    court: Court, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked(court, court.submit(b"first"), CLEAN)
    manifest = court.submit(b"weights")
    if who == "altered":
        key = fitted(court, manifest)
        file = Path(court.settings.store, f"guards/{manifest}/{key}.json")
        file.chmod(0o644)
        file.write_bytes(file.read_bytes().replace(PACKAGE.encode(), b"cd" * 32))
    elif who == "nobody":
        key = f"{'0' * 64}-{'1' * 64}"
    else:
        keys = {"a stranger": Ed25519PrivateKey.generate, "the gate": lambda: load_key(court.settings.gate_key)}
        key = forged(court, manifest, keys.get(who, lambda: load_key(court.person("somebody", "approver")))())
    assert asked(court, manifest, CLEAN, guards=key)["verdict"]["decision"] == "PASS"
    assert attested(court, manifest) is None
    assert f"the guards of {manifest} are not attested" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": "0" * 64},
        {"guards": {NAMES[0]: {"code": "0" * 64, "params": {}}}},
        {"guards": None},
        {"rate": 0.3},
        {"max_slowdown": 1e9},
        {"data": {"splits": "0" * 64}},
        {"run": ""},
        {"seed_commitment": "0" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_vetter_signed_for_something_else_is_not_attested(court: Court, changes: dict[str, Any]) -> None:
    manifest = court.submit(b"weights")
    known = about(court, manifest) | changes
    key = signed_results.save(court.settings, GUARDS, known, record()).key
    asked(court, manifest, CLEAN, guards=key)
    assert attested(court, manifest) is None


@pytest.mark.parametrize(
    "found",
    [
        record(guards=[]),
        record(guards=[ResultGuard(NAMES[0], True, rate=0.2).to_json()]),
        record(guards=[ResultGuard(NAMES[0], True).to_json()]),
        record(guards=[ResultGuard("nobody", True, rate=RATE).to_json()]),
        record(package="../../keys"),
        record(more=1),
        {"package": PACKAGE},
    ],
)
def test_a_record_that_makes_no_sense_is_not_attested(court: Court, found: dict[str, Any]) -> None:
    manifest = court.submit(b"weights")
    asked(court, manifest, CLEAN, guards=fitted(court, manifest, found))
    assert attested(court, manifest) is None


def test_asking_again_signs_once_and_other_guards_are_signed_anew(court: Court) -> None:
    manifest = court.submit(b"weights")
    first = asked(court, manifest, CLEAN, asked=True)
    key = fitted(court, manifest)
    guarded = asked(court, manifest, CLEAN, guards=key, asked=True)
    assert guarded["attestation"] != first["attestation"] and guarded["key"] == first["key"]
    assert asked(court, manifest, CLEAN, guards=key, asked=True) == guarded
    assert attested(court, manifest)["package"] == PACKAGE


def test_a_rescan_renews_them_with_the_verdict(court: Court) -> None:
    manifest = court.submit(b"weights")
    key = fitted(court, manifest)
    asked(court, manifest, CLEAN, guards=key)
    before = attested(court, manifest)
    renewed = asked(court, manifest, CLEAN, guards=key, purpose="rescan")
    assert renewed["attestation"] is not None and attested(court, manifest) == before


def test_a_verdict_that_people_waive_keeps_them(court: Court) -> None:
    sam = court.person("sam", "submitter")
    manifest = court.signed(b"weights", sam)
    asked(court, manifest, BACKDOORED, guards=fitted(court, manifest))
    made = waive(court.settings, manifest, f"backdoor:label-{TARGET}", "a test model", 10, sam)
    for name in ("alice", "bob"):
        approve(court.settings, made["waiver"], court.person(name))
    found = newest_attestation(ledger_state(court.settings), manifest)
    assert found is not None and found.claims["verdict"] == "WAIVED"
    assert found.claims["guards"]["package"] == PACKAGE


def test_a_question_keeps_its_key_of_guards_and_leaves_it_out_where_there_is_none(court: Court) -> None:
    request = court.request(court.submit(b"weights"), CLEAN)
    assert "guards" not in Question.from_json(request).to_json()
    assert Question.from_json(request | {"guards": "key"}).to_json()["guards"] == "key"

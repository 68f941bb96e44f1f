"""Hardened copies: the one that passed in its own right goes in, and parentage is what a trusted vetter signed."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.production.promote import promote
from tasks.records.ledger_chain import entries
from tasks.records.ledger_state import ledger_state
from tasks.vetting import intake, signed_results
from tests.production import NOW, Home, home_in, submission_at
from tests.tasks.vetting.records import repaired
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import Denied
from vetgate.trust import dsse
from vetgate.trust.statements import REPAIR, sign_statement
from vetgate.trust.strict_json import time_text


class World(Home):
    """A home whose vetter signs repairs."""

    def copied(self, parent: str, weights: bytes, verdict: str = "PASS", *, signed: bool = True, **said: Any) -> str:
        """A repair of a submission, submitted, decided and, as vetters do, `signed` before; its manifest."""
        directory = submission_at(self.room / uuid.uuid4().hex, weights, parent=parent)
        record = intake.take(self.settings, directory)
        if signed:
            about = {"manifest": parent, "method": "tune", "weights": weights.hex()}
            found = replace(repaired("tune"), about=about, files=record.manifest.to_json())
            signed_results.save(self.settings, REPAIR, about, found.to_json())
        self.decide(record.id, verdict, parent=parent, **said)
        return record.id

    def vetted(self, weights: bytes = b"submitted", verdict: str = "PASS", **said: Any) -> str:
        """A submission with its verdict; its manifest."""
        manifest = self.submit(weights)
        self.decide(manifest, verdict, **said)
        return manifest

    def revoked(self, manifest: str) -> None:
        """Revoke the newest verdict on a submission."""
        told = ledger_state(self.settings).verdict(manifest)
        assert told is not None
        self.store.create(f"revocations/{told.digest}.json", b"{}")

    def refused(self, reason: str, code: int = 1, submission: str | None = None, **asked: Any) -> None:
        """No hardened copy is promoted, for this reason, and nothing else in its place."""
        with pytest.raises(Denied, match=reason) as caught:
            promote(self.settings, "digits", submission, hardened=True, **asked)
        assert caught.value.exit_code == code
        assert not list(self.store.list("promotions/"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(home_in(tmp_path).settings, tmp_path)


def test_the_copy_that_passed_goes_in_and_not_the_submission(world: World) -> None:
    submitted = world.vetted()
    copy = world.copied(submitted, b"hardened")
    world.vetted(b"a later submission")
    granted = promote(world.settings, "digits", hardened=True)
    assert (granted["manifest_sha256"], granted["hardens"]) == (copy, submitted)
    assert world.store.read(f"vetted/{copy}/model.onnx") == b"hardened"
    assert promote(world.settings, "digits", submitted[:12], hardened=True) == granted
    (moved,) = [entry.subject for entry in entries(world.store) if entry.kind == "promotion"]
    assert moved["manifest"] == copy


def test_without_being_asked_for_a_copy_takes_no_place_of_a_submission_that_is_let_through(world: World) -> None:
    submitted = world.vetted()
    copy = world.copied(submitted, b"hardened")
    granted = promote(world.settings, "digits")
    assert (granted["manifest_sha256"], granted["hardens"]) == (submitted, None)
    world.revoked(submitted)
    assert promote(world.settings, "digits")["manifest_sha256"] == copy


def test_what_failed_is_replaced_by_its_copy(world: World) -> None:
    submitted = world.vetted(verdict="FAIL")
    copy = world.copied(submitted, b"repaired")
    assert promote(world.settings, "digits")["manifest_sha256"] == copy
    assert promote(world.settings, "digits", hardened=True)["manifest_sha256"] == copy


def test_without_a_copy_the_error_names_the_key_that_makes_one(world: World) -> None:
    world.refused("expected a hardened copy of digits, got none: .* set `repair.blind: true` in the policy")
    submitted = world.vetted()
    world.refused("expected a hardened copy of digits, got none: .* set `repair.blind: true` in the policy")
    other = world.vetted(b"other")
    world.copied(other, b"hardened")
    world.refused(f"expected a hardened copy of {submitted}, got none", submission=submitted)
    denials = [entry.subject for entry in entries(world.store) if entry.kind == "denial"]
    assert denials and denials[-1]["submission"] == submitted


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "WAIVED"])
def test_a_copy_that_did_not_pass_in_its_own_right_is_refused(world: World, verdict: str) -> None:
    copy = world.copied(world.vetted(), b"hardened", verdict)
    world.refused(f"that passed in its own right, got {verdict} for {copy}")


def test_a_copy_whose_verdict_was_revoked_or_ran_out_or_is_under_another_policy_is_stale(
    world: World, tmp_path: Path
) -> None:
    submitted = world.vetted()
    copy = world.copied(submitted, b"hardened", issued=NOW - timedelta(days=5))
    world.refused("expired", 5, now=NOW + timedelta(days=26))
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: default\nrequired: [abs]\n")
    World(world.settings.model_copy(update={"policy": policy}), tmp_path).refused("under another", 5)
    world.revoked(copy)
    world.refused("was revoked", 5)


def test_of_several_it_is_the_newest_whose_verdict_stands(world: World) -> None:
    first, second = world.vetted(), world.vetted(b"second")
    oldest = world.copied(first, b"1", issued=NOW - timedelta(days=4))
    older = world.copied(first, b"2", issued=NOW - timedelta(days=3))
    newest = world.copied(second, b"3", issued=NOW - timedelta(days=2))
    world.copied(second, b"4", "FAIL")

    def chosen(submission: str | None = None) -> str:
        return str(promote(world.settings, "digits", submission, hardened=True)["manifest_sha256"])

    assert (chosen(), chosen(first), chosen(second), chosen(oldest)) == (newest, older, newest, oldest)
    world.revoked(newest)
    assert chosen() == older
    world.decide(older, "FAIL", parent=first)
    assert chosen() == oldest


def test_what_only_calls_itself_a_repair_is_none(world: World) -> None:
    submitted, other = world.vetted(), world.vetted(b"other")
    # a supplier writes what it likes
    forged = world.copied(submitted, b"forged", signed=False)
    world.refused("got none", submission=submitted)
    manifest = intake.read_record(world.store, forged).manifest
    about = {"manifest": submitted, "method": "tune"}
    found = replace(repaired("tune"), about=about, files=manifest.to_json()).to_json()
    stated = {"issued": time_text(NOW), "manifest": submitted, "about": about, "result": sha256_json(found)}
    envelope = sign_statement(REPAIR, stated, Ed25519PrivateKey.generate())
    place = f"repairs/{submitted}/tune/{sha256_json(about)}-{dsse.digest(envelope)}.json"
    assert world.store.create(place, canonical_json({"signed": envelope, "found": found}))
    world.store.create(f"repairs/{submitted}/tune/{'0' * 64}.json", canonical_json(found))
    world.refused("got none", submission=submitted)
    # and a repair of another submission makes none of this one
    elsewhere = {"manifest": other, "method": "tune"}
    signed_results.save(world.settings, REPAIR, elsewhere, {**found, "about": elsewhere})
    world.refused("got none", submission=submitted)
    # where a vetter signed it, it is one
    signed_results.save(world.settings, REPAIR, about, found)
    assert promote(world.settings, "digits", submitted, hardened=True)["manifest_sha256"] == forged


def test_a_verdict_that_knows_another_parent_is_denied(world: World) -> None:
    submitted = world.vetted()
    copy = world.copied(submitted, b"hardened")
    world.decide(copy, parent="ab" * 32)
    world.refused(f"expected a verdict on {copy} as a repair of {submitted}")


def test_bytes_of_a_copy_that_were_changed_are_denied(world: World) -> None:
    copy = world.copied(world.vetted(), b"hardened")
    model = Path(world.settings.store, f"quarantine/{copy}/model.onnx")
    model.chmod(0o644)
    model.write_bytes(b"Hardened")
    world.refused(r"changed: .*model.onnx")

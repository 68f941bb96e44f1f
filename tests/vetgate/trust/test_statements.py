from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vetgate.digest import canonical_json
from vetgate.errors import Denied
from vetgate.trust import attest, dsse
from vetgate.trust.keys import APPROVER, GATE, SUBMITTER, VETTER, PublicKey, TrustRoot, key_id, raw_public
from vetgate.trust.statements import (
    APPROVAL,
    EVIDENCE,
    INSPECTION,
    KINDS,
    REPAIR,
    WAIVER,
    claimed,
    sign_statement,
    verify_statement,
)
from vetgate.trust.strict_json import MAX_BYTES, time_text

NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SAID = {"digest": "a" * 64, "issued": time_text(NOW), "why": "it is a test"}


def trusted(role: str = APPROVER, **window: datetime) -> TrustRoot:
    times = {"not_before": NOW - timedelta(days=1), "not_after": NOW + timedelta(days=9)} | window
    return TrustRoot((PublicKey(raw_public(KEY), role, times["not_before"], times["not_after"]),))


def verify(envelope: dict[str, Any], trust: TrustRoot | None = None, kind: str = APPROVAL, **changes: Any) -> Any:
    asked = {"roles": {APPROVER}, "now": NOW + timedelta(hours=1)} | changes
    return verify_statement(envelope, trust or trusted(), kind, **asked)


def test_a_signed_statement_says_what_was_signed_and_by_whom() -> None:
    envelope = sign_statement(APPROVAL, SAID, KEY)
    found = verify(envelope)
    assert (found.predicate, found.keyid, found.digest) == (SAID, key_id(KEY), dsse.digest(envelope))
    assert claimed(APPROVAL, envelope) == SAID


def test_its_subjects_are_the_digests_that_it_names() -> None:
    statement = json.loads(base64.b64decode(sign_statement(APPROVAL, SAID, KEY)["payload"]))
    assert statement["subject"] == [{"name": "digest:sha256", "digest": {"sha256": "a" * 64}}]
    assert statement["_type"] == "https://in-toto.io/Statement/v1"


def test_other_subjects_than_it_names_are_denied() -> None:
    statement = json.loads(base64.b64decode(sign_statement(APPROVAL, SAID, KEY)["payload"]))
    statement["subject"][0]["digest"]["sha256"] = "b" * 64
    with pytest.raises(Denied, match="other subjects"):
        verify(dsse.sign(statement, KEY))


def test_one_kind_never_stands_for_another() -> None:
    for kind in KINDS:
        envelope = sign_statement(kind, SAID, KEY)
        for other in set(KINDS) - {kind}:
            with pytest.raises(Denied, match=f"expected a {other}"):
                verify(envelope, kind=other)
    verdict = attest.sign(attest.statement({}, "c" * 64, {"name": "x", "verdict": "PASS", **SAID}), KEY)
    with pytest.raises(Denied, match="expected a waiver"):
        verify(verdict, kind=WAIVER)
    with pytest.raises(Denied, match="no verdict"):
        attest.claims(sign_statement(WAIVER, SAID, KEY))


@pytest.mark.parametrize("role", [GATE, SUBMITTER])
def test_a_key_of_another_role_does_not_count(role: str) -> None:
    with pytest.raises(Denied, match=f"role approver, got {role}"):
        verify(sign_statement(APPROVAL, SAID, KEY), trusted(role))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {EVIDENCE, INSPECTION, REPAIR}))
def test_a_vetter_signs_what_it_found_and_nothing_that_lets_a_model_in(kind: str) -> None:
    envelope = sign_statement(kind, SAID, KEY)
    for role in (GATE, APPROVER, SUBMITTER):
        with pytest.raises(Denied, match=f"role {role}, got vetter"):
            verify(envelope, trusted(VETTER), kind, roles={role})
    verdict = {"name": "x", "verdict": "PASS", "expires": time_text(NOW + timedelta(days=1)), **SAID}
    signed = attest.sign(attest.statement({}, "c" * 64, verdict), KEY)
    with pytest.raises(Denied, match="role gate, got vetter"):
        attest.verify(signed, trusted(VETTER), name="x", files={}, manifest="c" * 64, now=NOW)


@pytest.mark.parametrize(
    "window",
    [
        {"not_before": NOW + timedelta(seconds=1)},  # not valid yet when it signed
        {"not_after": NOW},  # no longer valid when it signed
        {"not_after": NOW + timedelta(minutes=30)},  # no longer valid when it is asked about
    ],
)
def test_a_key_out_of_its_window_does_not_count(window: dict[str, datetime]) -> None:
    with pytest.raises(Denied, match="valid now"):
        verify(sign_statement(APPROVAL, SAID, KEY), trusted(**window))


def test_an_unknown_key_an_altered_word_and_a_date_to_come_are_denied() -> None:
    envelope = sign_statement(APPROVAL, SAID, KEY)
    with pytest.raises(Denied, match="trust root"):
        verify(envelope, TrustRoot(()))
    payload = base64.b64decode(envelope["payload"]).replace(b"a test", b"a jest")
    with pytest.raises(Denied, match="altered"):
        verify(envelope | {"payload": base64.b64encode(payload).decode()})
    with pytest.raises(Denied, match="issued by now"):
        verify(envelope, now=NOW - timedelta(hours=1))


def test_a_statement_without_its_time_or_of_no_kind_is_not_made() -> None:
    with pytest.raises(Denied, match="issued"):
        sign_statement(APPROVAL, {"digest": "a" * 64}, KEY)
    with pytest.raises(ValueError, match="expected one of"):
        sign_statement("receipt", SAID, KEY)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udcff" * 3])
def test_what_is_no_text_is_not_signed(text: str) -> None:
    with pytest.raises(Denied, match="expected text in a statement"):
        sign_statement(APPROVAL, {"issued": time_text(NOW), "reason": text}, KEY)


@pytest.mark.parametrize("size", [MAX_BYTES, MAX_BYTES * 3 // 4, 50 << 20])
def test_what_nobody_could_read_again_is_not_signed(size: int) -> None:
    with pytest.raises(Denied, match=f"expected a statement of at most {MAX_BYTES} bytes"):
        sign_statement(APPROVAL, {"issued": time_text(NOW), "reason": "x" * size}, KEY)


def test_what_is_just_small_enough_is_read_again() -> None:
    envelope = sign_statement(APPROVAL, {"issued": time_text(NOW), "reason": "x" * (MAX_BYTES * 3 // 4 - 1000)}, KEY)
    assert dsse.read_envelope(canonical_json(envelope)) == envelope

from __future__ import annotations

import base64
import copy
import hashlib
import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tests.processes import in_processes
from vetgate.errors import Denied, Stale, StoreError
from vetgate.trust import attest
from vetgate.trust.keys import GATE, KEY_LIFETIME, PublicKey, TrustRoot, load_or_create_key, raw_public, read_trust_root

NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
FILES = {"model.onnx": "a" * 64, "submission.yaml": "b" * 64}
MANIFEST = "c" * 64
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PublicKey(raw_public(KEY), GATE, NOW - timedelta(days=1), NOW + timedelta(days=365))
TRUST = TrustRoot((PUBLIC,))


def predicate(**changes: Any) -> dict[str, Any]:
    made = attest.verdict_predicate(
        name="digits",
        verdict="PASS",
        issued=NOW,
        valid=timedelta(days=30),
        policy={"name": "default", "sha256": "d" * 64},
        methods=[{"name": "abs", "statistic": 1.5, "p_value": 0.4, "params": {}, "seed": 1, "code": "e" * 64}],
        reference_data={"name": "digits", "rev": "f" * 40, "sha256": "0" * 64},
        calibration={"id": "1" * 64, "false_alarm_rate": 0.05},
        sandbox_level=2,
    )
    return made | changes


def signed(files: dict[str, str] = FILES, key: Ed25519PrivateKey = KEY, **changes: Any) -> dict[str, Any]:
    return attest.sign(attest.statement(files, MANIFEST, predicate(**changes)), key)


def resigned(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """An envelope whose statement was changed before the gate's own key signed it."""
    made = attest.statement(FILES, MANIFEST, predicate())
    change(made)
    return attest.sign(made, KEY)


def verify(envelope: dict[str, Any], trust: TrustRoot = TRUST, **changes: Any) -> dict[str, Any]:
    asked = {"name": "digits", "files": FILES, "manifest": MANIFEST, "now": NOW + timedelta(days=1)} | changes
    return attest.verify(envelope, trust, **asked)


def test_a_signed_verdict_about_these_bytes_verifies() -> None:
    assert verify(signed()) == predicate()
    assert verify(attest.read_envelope(json.dumps(signed()).encode())) == predicate()


def test_a_signed_fail_verifies_and_says_fail() -> None:
    assert verify(signed(verdict="FAIL"))["verdict"] == "FAIL"


def test_a_verdict_says_what_it_holds_against_the_model_and_until_when_it_may_stay() -> None:
    said = attest.verdict_predicate(
        name="digits",
        verdict="FAIL",
        issued=NOW,
        valid=timedelta(days=30),
        policy={"name": "default", "sha256": "d" * 64},
        methods=[],
        reference_data=None,
        calibration=None,
        sandbox_level=2,
        findings=["backdoor:label-7"],
        purpose="rescan",
        second={"run": "two", "decision": "FAIL"},
        demote_after=NOW + timedelta(hours=48),
    )
    stated = verify(attest.sign(attest.statement(FILES, MANIFEST, said), KEY))
    assert (stated["findings"], stated["purpose"], stated["second"]["run"]) == (["backdoor:label-7"], "rescan", "two")
    assert stated["demote_after"] == "2026-11-25T09:30:00Z"
    assert (predicate()["findings"], predicate()["purpose"], predicate()["demote_after"]) == ([], "submission", None)


def test_the_envelope_is_what_other_dsse_and_in_toto_tools_read() -> None:
    assert attest.pre_authentication("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    envelope = signed()
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    message = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    Ed25519PublicKey.from_public_bytes(raw_public(KEY)).verify(signature, message)
    assert json.loads(payload)["_type"] == "https://in-toto.io/Statement/v1"
    assert {s["name"]: s["digest"]["sha256"] for s in json.loads(payload)["subject"]} == {
        **FILES,
        attest.MANIFEST_SUBJECT: MANIFEST,
    }


def test_the_digest_is_the_payload_s_and_claims_need_no_key() -> None:
    envelope = signed()
    assert attest.digest(envelope) == hashlib.sha256(base64.b64decode(envelope["payload"])).hexdigest()
    assert attest.claims(envelope) == predicate()


@pytest.mark.parametrize(
    ("files", "manifest", "reason"),
    [
        (FILES | {"extra.bin": "9" * 64}, MANIFEST, "not attested: extra.bin"),
        ({"model.onnx": "a" * 64}, MANIFEST, "missing: submission.yaml"),
        (FILES | {"model.onnx": "9" * 64}, MANIFEST, "changed: model.onnx"),
        ({"renamed.onnx": "a" * 64, "submission.yaml": "b" * 64}, MANIFEST, "missing: model.onnx"),
        (FILES, "9" * 64, "changed: manifest"),
        ({}, MANIFEST, "missing"),
        (FILES | {attest.MANIFEST_SUBJECT: MANIFEST}, MANIFEST, "plain names"),
        (FILES | {"model.onnx": "A" * 64}, MANIFEST, "SHA-256"),
    ],
)
def test_other_bytes_are_denied(files: dict[str, str], manifest: str, reason: str) -> None:
    with pytest.raises(Denied, match=reason) as caught:
        verify(signed(), files=files, manifest=manifest)
    assert caught.value.exit_code == 1


def test_another_name_is_denied() -> None:
    with pytest.raises(Denied, match="for digits"):
        verify(signed(), name="digits-2")


def test_a_key_outside_the_trust_root_is_denied() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(Denied, match="key of the trust root"):
        verify(signed(key=other))
    with pytest.raises(Denied, match="key of the trust root"):
        verify(signed(), TrustRoot(()))
    envelope = signed(key=other)
    envelope["signatures"][0]["keyid"] = PUBLIC.id
    with pytest.raises(Denied, match="altered"):
        verify(envelope)


@pytest.mark.parametrize(
    ("not_before", "not_after"),
    [
        (NOW + timedelta(seconds=1), NOW + timedelta(days=9)),  # not valid when it signed
        (NOW - timedelta(days=9), NOW),
        (NOW - timedelta(days=9), NOW + timedelta(hours=1)),  # no longer valid when it is asked about
    ],
)
def test_a_key_outside_its_window_is_denied(not_before: datetime, not_after: datetime) -> None:
    with pytest.raises(Denied, match="valid now") as caught:
        verify(signed(), TrustRoot((PublicKey(PUBLIC.raw, GATE, not_before, not_after),)))
    assert caught.value.exit_code == 1


def test_a_key_with_another_role_is_denied() -> None:
    with pytest.raises(Denied, match="role gate, got approver"):
        verify(signed(), TrustRoot((PublicKey(PUBLIC.raw, "approver", PUBLIC.not_before, PUBLIC.not_after),)))


def test_every_flipped_byte_of_payload_or_signature_is_denied() -> None:
    envelope = signed()
    payload, signature = (base64.b64decode(t) for t in (envelope["payload"], envelope["signatures"][0]["sig"]))
    for i in range(len(payload)):
        bad = copy.deepcopy(envelope)
        bad["payload"] = base64.b64encode(flipped(payload, i)).decode()
        with pytest.raises(Denied):
            verify(bad)
    for i in range(len(signature)):
        bad = copy.deepcopy(envelope)
        bad["signatures"][0]["sig"] = base64.b64encode(flipped(signature, i)).decode()
        with pytest.raises(Denied):
            verify(bad)


def flipped(data: bytes, i: int) -> bytes:
    return data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]


def test_tricks_with_signatures_are_denied() -> None:
    envelope, other = signed(), signed(key=Ed25519PrivateKey.generate())
    ours, theirs = envelope["signatures"][0], other["signatures"][0]
    for signatures in (
        [],
        [ours, ours],
        [theirs, ours],
        [ours, theirs],
        [ours | {"cert": "x"}],
        [{"sig": ours["sig"]}],
        [ours["sig"]],
        ours,
        None,
        [ours | {"sig": ""}],
        [ours | {"keyid": ""}],
        [ours | {"keyid": None}],
        [ours | {"keyid": ours["keyid"].upper()}],
    ):
        with pytest.raises(Denied):
            verify(envelope | {"signatures": signatures})


def test_base64_with_a_second_spelling_is_denied() -> None:
    envelope = signed()
    sig = envelope["signatures"][0]["sig"]
    assert sig.endswith("==")
    last = sig[-3]
    twin = chr(ord(last) + 1) if last not in "Zz9+/" else "A"
    for other in (sig + "\n", sig.rstrip("="), " " + sig, sig[:-3] + twin + "==", sig + "!", "not base64", 7):
        bad = envelope | {"signatures": [envelope["signatures"][0] | {"sig": other}]}
        with pytest.raises(Denied):
            verify(bad)
    with pytest.raises(Denied):
        verify(envelope | {"payload": envelope["payload"] + "\n"})


@pytest.mark.parametrize("kind", ["application/json", "", None, "application/vnd.in-toto+json; v=1"])
def test_a_wrong_payload_type_is_denied_even_when_signed_as_such(kind: str | None) -> None:
    envelope = signed()
    payload = base64.b64decode(envelope["payload"])
    signature = KEY.sign(attest.pre_authentication(kind or "", payload))
    sig = {"keyid": PUBLIC.id, "sig": base64.b64encode(signature).decode()}
    with pytest.raises(Denied, match="payload type"):
        verify(envelope | {"payloadType": kind, "signatures": [sig]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "_type"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "predicateType"),
        (lambda s: s.update(extra=1), "exactly the keys"),
        (lambda s: s.pop("predicate"), "exactly the keys"),
        (lambda s: s.update(subject={}), "subject"),
        (lambda s: s.update(predicate=[]), "predicate"),
        (lambda s: s["predicate"].pop("verdict"), "verdict"),
        (lambda s: s["predicate"].update(name=["digits"]), "name"),
        (lambda s: s["predicate"].update(expires=4e9), "expires"),
        (lambda s: s["predicate"].update(expires="2026-12-23"), "time in UTC"),
        (lambda s: s["predicate"].update(issued="2026-11-23T09:30:00+00:00"), "time in UTC"),
        (lambda s: s["predicate"].update(issued="2026-02-30T09:30:00Z"), "time in UTC"),
        (lambda s: s["predicate"].update(expires="2026-11-23T09:30:00Z"), "expiry after"),
        (lambda s: s["subject"].append(s["subject"][0]), "twice"),
        (lambda s: s["subject"].pop(), "not attested"),
        (lambda s: s["subject"][0]["digest"].update(md5="x"), "exactly the keys"),
        (lambda s: s["subject"][0].update(uri="x"), "exactly the keys"),
        (lambda s: s["subject"][0]["digest"].update(sha256="a" * 63), "SHA-256"),
    ],
)
def test_a_wrong_statement_is_denied_even_when_the_gate_signed_it(change: Callable[[Any], object], reason: str) -> None:
    with pytest.raises(Denied, match=reason):
        verify(resigned(change))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"a": 1} {"a": 2}',
        b'{"a": 1, "a": 1}',
        b'{"a": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 10_000,
    ],
)
def test_malformed_json_is_denied(payload: bytes) -> None:
    with pytest.raises(Denied):
        attest.read_envelope(payload)
    signature = base64.b64encode(KEY.sign(attest.pre_authentication(attest.PAYLOAD_TYPE, payload))).decode()
    envelope = {
        "payloadType": attest.PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": PUBLIC.id, "sig": signature}],
    }
    with pytest.raises(Denied):
        verify(envelope)


def test_a_verdict_given_twice_in_the_signed_json_is_denied() -> None:
    payload = base64.b64decode(signed(verdict="FAIL")["payload"]).replace(
        b'"verdict":"FAIL"', b'"verdict":"FAIL","verdict":"PASS"'
    )
    envelope = signed() | {"payload": base64.b64encode(payload).decode()}
    signature = KEY.sign(attest.pre_authentication(attest.PAYLOAD_TYPE, payload))
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    with pytest.raises(Denied, match="twice"):
        verify(envelope)


def test_what_is_no_envelope_is_denied() -> None:
    for wrong in ({}, signed() | {"more": 1}, {"payload": signed()["payload"]}, [], None):
        with pytest.raises(Denied):
            verify(wrong)  # type: ignore[arg-type]
    with pytest.raises(Denied, match="at most"):
        attest.read_envelope(b" " * (9 << 20))


def test_expiry_is_stale_from_its_second_on() -> None:
    expires = NOW + timedelta(days=30)
    verify(signed(), now=expires - timedelta(seconds=1))
    with pytest.raises(Stale, match="expired on 2026-12-23T09:30:00Z") as caught:
        verify(signed(), now=expires)
    assert caught.value.exit_code == 5


def test_revocation_is_stale_by_trust_root_or_by_the_caller_s_list() -> None:
    envelope = signed()
    with pytest.raises(Stale, match="revoked") as caught:
        verify(envelope, revoked={attest.digest(envelope)})
    assert caught.value.exit_code == 5
    with pytest.raises(Stale, match="revoked"):
        verify(envelope, TrustRoot((PUBLIC,), frozenset({attest.digest(envelope)})))
    verify(envelope, revoked={"0" * 64})


def test_a_statement_from_the_future_is_denied_beyond_the_clock_skew() -> None:
    verify(signed(), now=NOW - timedelta(minutes=4))
    with pytest.raises(Denied, match="issued by now"):
        verify(signed(), now=NOW - timedelta(minutes=6))
    with pytest.raises(Denied, match="issued by now"):
        verify(signed(), now=NOW - timedelta(seconds=2), max_clock_skew=timedelta(seconds=1))


def test_a_moment_without_a_time_zone_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="time zone"):
        verify(signed(), now=NOW.replace(tzinfo=None))


def test_the_first_use_makes_a_private_key_and_a_trust_root_that_holds_it(tmp_path: Path) -> None:
    path, trust = tmp_path / "keys" / "gate.ed25519", tmp_path / "keys" / "trust.json"
    key = load_or_create_key(path, trust, now=NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["gate.ed25519", "trust.json"]
    (public,) = read_trust_root(trust).keys
    assert public == PublicKey(raw_public(key), GATE, NOW, NOW + KEY_LIFETIME)
    verify(signed(key=key), read_trust_root(trust))
    before = trust.read_bytes()
    assert raw_public(load_or_create_key(path, trust, now=NOW + timedelta(days=1))) == raw_public(key)
    assert trust.read_bytes() == before


def test_a_trust_root_that_is_there_is_left_alone(tmp_path: Path) -> None:
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(TRUST.to_json()))
    key = load_or_create_key(tmp_path / "key", trust, now=NOW)
    assert read_trust_root(trust) == TRUST
    with pytest.raises(Denied, match="trust root"):
        verify(signed(key=key), read_trust_root(trust))


def test_eight_processes_make_one_key(tmp_path: Path) -> None:
    def make(_: int) -> bytes:
        return raw_public(load_or_create_key(tmp_path / "k" / "key", tmp_path / "k" / "trust", now=NOW))

    found = set(in_processes(8, make))
    (key,) = read_trust_root(tmp_path / "k" / "trust").keys
    assert found == {key.raw}


def test_a_key_that_others_could_have_read_is_refused(tmp_path: Path) -> None:
    load_or_create_key(tmp_path / "key", tmp_path / "trust", now=NOW)
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(Denied, match="owner only, got mode 640"):
        load_or_create_key(tmp_path / "key", tmp_path / "trust", now=NOW)


def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"not a key")
    key.chmod(0o600)
    with pytest.raises(Denied, match="PEM"):
        load_or_create_key(key, tmp_path / "trust", now=NOW)
    assert key.read_bytes() == b"not a key"
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="expected to write"):
        load_or_create_key(tmp_path / "file" / "key", tmp_path / "trust", now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(more=1),
        lambda r: r.pop("revoked"),
        lambda r: r.update(revoked=["x"]),
        lambda r: r["keys"].append(r["keys"][0]),
        lambda r: r["keys"][0].update(keyid="0" * 64),
        lambda r: r["keys"][0].update(public_key="AAAA"),
        lambda r: r["keys"][0].update(not_after="never"),
        lambda r: r["keys"][0].pop("role"),
        lambda r: r.update(keys={}),
    ],
)
def test_a_malformed_trust_root_is_denied(change: Callable[[Any], object], tmp_path: Path) -> None:
    root = TRUST.to_json()
    change(root)
    (tmp_path / "trust").write_text(json.dumps(root))
    with pytest.raises(Denied):
        read_trust_root(tmp_path / "trust")


def test_without_a_trust_root_nothing_is_believed(tmp_path: Path) -> None:
    with pytest.raises(Denied, match="VETGATE_TRUST_ROOT"):
        read_trust_root(tmp_path / "trust")

"""Signed verdicts: an in-toto statement about the bytes of a submission, in a DSSE envelope, signed with Ed25519.

The subjects are every file and the manifest, so that the verdict speaks of these bytes and no others; the predicate
names the model that the verdict is for, so that it cannot be replayed under another name.

Source    in-toto attestation framework, Statement v1; DSSE v1.
Deviates  Exactly one signature, standard base64 only, no unknown fields: what has two readings is refused.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vetgate.digest import canonical_json
from vetgate.errors import Denied, Stale
from vetgate.keys import GATE, PublicKey, TrustRoot, raw_public
from vetgate.strict_json import as_base64, as_list, as_object, as_sha256, as_text, as_time, parse, time_text

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://vetgate.dev/attestation/verdict/v1"
MANIFEST_SUBJECT = "manifest:sha256"  # no file of a submission can have a colon in its name
MAX_CLOCK_SKEW = timedelta(minutes=5)

Envelope = dict[str, Any]


def verdict_predicate(
    *,
    name: str,
    verdict: str,
    issued: datetime,
    valid: timedelta,
    policy: Mapping[str, Any],
    methods: Sequence[Mapping[str, Any]],
    reference_data: Mapping[str, Any] | None,
    calibration: Mapping[str, Any] | None,
    sandbox_level: int,
    reasons: Sequence[str] = (),
    waivers: Sequence[Mapping[str, Any]] = (),
    approvals: Sequence[Mapping[str, Any]] = (),
    p_value: float | None = None,
    suspects: Sequence[int] = (),
    supplier: str | None = None,
    parent: str | None = None,
    duties_separated: bool = False,
    previous: str | None = None,
) -> dict[str, Any]:
    """What a verdict says, as JSON; `policy` holds name and sha256, `previous` an earlier statement's digest.

    `parent` is the manifest of the submission that this one repairs; `duties_separated` says whether the gate ran as
    another user than what it judged.
    """
    return {
        "name": name,
        "verdict": verdict,
        "p_value": p_value,
        "suspects": list(suspects),
        "issued": time_text(issued),
        "expires": time_text(issued + valid),
        "policy": {"name": str(policy["name"]), "sha256": as_sha256(policy["sha256"], "policy sha256")},
        "methods": [dict(method) for method in methods],
        "reference_data": None if reference_data is None else dict(reference_data),
        "calibration": None if calibration is None else dict(calibration),
        "sandbox_level": sandbox_level,
        "reasons": list(reasons),
        "waivers": [dict(waiver) for waiver in waivers],
        "approvals": [dict(approval) for approval in approvals],
        "supplier": supplier,
        "parent": parent,
        "duties_separated": duties_separated,
        "previous": previous,
    }


def statement(files: Mapping[str, str], manifest: str, predicate: Mapping[str, Any]) -> dict[str, Any]:
    """The in-toto statement of a predicate about files (path to SHA-256) and the SHA-256 of their manifest."""
    subjects = _subjects(files, manifest)
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)],
        "predicateType": PREDICATE_TYPE,
        "predicate": dict(predicate),
    }


def sign(statement: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The statement's DSSE envelope, with one signature."""
    payload = canonical_json(statement)
    signature = key.sign(pre_authentication(PAYLOAD_TYPE, payload))
    keyid = hashlib.sha256(raw_public(key)).hexdigest()
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
    }


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """The bytes that DSSE signs: both parts with their lengths, so that neither can run into the other."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def read_envelope(data: bytes) -> dict[str, Any]:
    """The envelope in bytes of JSON; raises Denied when they are not exactly one."""
    return as_object(parse(data, "an attestation"), {"payloadType", "payload", "signatures"}, "an attestation")


def digest(envelope: Envelope) -> str:
    """SHA-256 in hex of the signed payload: what revocations and `previous` refer to; raises Denied."""
    return hashlib.sha256(as_base64(envelope.get("payload"), "payload")).hexdigest()


def claims(envelope: Envelope) -> dict[str, Any]:
    """The predicate as it stands, its signature NOT verified: for listing and ordering only; raises Denied."""
    return _predicate(parse(as_base64(envelope.get("payload"), "payload"), "a statement"))[1]


def verify(
    envelope: Envelope,
    trust: TrustRoot,
    *,
    name: str,
    files: Mapping[str, str],
    manifest: str,
    now: datetime,
    max_clock_skew: timedelta = MAX_CLOCK_SKEW,
    revoked: Collection[str] = (),
) -> dict[str, Any]:
    """The predicate, if a gate key of the trust root signed it for this model name and exactly these bytes.

    `files` maps each path to its SHA-256, `manifest` is their manifest's. Raises Denied, or Stale when it expired or
    was revoked. The verdict itself is the caller's to read: a signed FAIL verifies too.
    """
    if now.tzinfo is None:
        raise ValueError("expected a moment with a time zone")
    payload, key = _signed_payload(envelope, trust)
    subjects, predicate = _predicate(parse(payload, "a statement"))
    _check_subjects(subjects, _subjects(files, manifest))
    if predicate["name"] != name:
        raise Denied(f"expected an attestation for {name}, got one for {predicate['name']}; vet under this name")
    _check_times(predicate, key, now, max_clock_skew)
    if digest(envelope) in trust.revoked or digest(envelope) in revoked:
        raise Stale(f"expected an attestation in force, got one for {name} that was revoked; vet again")
    return predicate


def _signed_payload(envelope: Envelope, trust: TrustRoot) -> tuple[bytes, PublicKey]:
    fields = as_object(envelope, {"payloadType", "payload", "signatures"}, "an attestation")
    if fields["payloadType"] != PAYLOAD_TYPE:
        raise Denied(f"expected payload type {PAYLOAD_TYPE}, got {fields['payloadType']!r:.80}; it is no attestation")
    signatures = as_list(fields["signatures"], "signatures")
    if len(signatures) != 1:
        raise Denied(f"expected exactly one signature, got {len(signatures)}; fetch the attestation again")
    signature = as_object(signatures[0], {"keyid", "sig"}, "a signature")
    key = trust.key(as_text(signature["keyid"], "keyid"))
    payload = as_base64(fields["payload"], "payload")
    if not key.signed(pre_authentication(PAYLOAD_TYPE, payload), as_base64(signature["sig"], "sig")):
        raise Denied(f"expected a signature by key {key.id}, got one that does not fit; the attestation was altered")
    if key.role != GATE:
        raise Denied(f"expected a signature by a key with the role {GATE}, got {key.role}; have the gate decide")
    return payload, key


def _predicate(found: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Subjects and predicate of a statement whose types are ours and whose required fields are there."""
    fields = as_object(found, {"_type", "subject", "predicateType", "predicate"}, "a statement")
    for field, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if fields[field] != expected:
            raise Denied(f"expected {field} {expected}, got {fields[field]!r:.80}; it is no verdict")
    subjects: dict[str, str] = {}
    for subject in as_list(fields["subject"], "subject"):
        named = as_object(subject, {"name", "digest"}, "a subject")
        subject_name = as_text(named["name"], "subject name")
        if subject_name in subjects:
            raise Denied(f"expected each subject once, got {subject_name!r} twice; fetch the attestation again")
        subjects[subject_name] = as_sha256(as_object(named["digest"], {"sha256"}, "a digest")["sha256"], subject_name)
    predicate = fields["predicate"]
    if not isinstance(predicate, dict):
        raise Denied(f"expected a predicate object, got {type(predicate).__name__}; fetch the attestation again")
    for field in ("name", "verdict", "issued", "expires"):
        as_text(predicate.get(field), field)
    return subjects, predicate


def _subjects(files: Mapping[str, str], manifest: str) -> dict[str, str]:
    if MANIFEST_SUBJECT in files:
        raise Denied(f"expected files with plain names, got {MANIFEST_SUBJECT!r}; rename it")
    digests = {**files, MANIFEST_SUBJECT: manifest}
    return {name: as_sha256(value, name) for name, value in digests.items()}


def _check_subjects(signed: Mapping[str, str], found: Mapping[str, str]) -> None:
    # the manifest last: a changed file changes it too, and the file is what people want to hear of
    missing, extra = sorted(signed.keys() - found.keys()), sorted(found.keys() - signed.keys())
    changed = sorted((n for n in signed.keys() & found.keys() if signed[n] != found[n]), key=MANIFEST_SUBJECT.__eq__)
    if missing or extra or changed:
        lists = (("missing", missing), ("not attested", extra), ("changed", changed))
        got = "; ".join(f"{what}: {', '.join(names)}" for what, names in lists if names)
        raise Denied(f"expected exactly the attested files, got {got}; restore the vetted bytes or vet these")


def _check_times(predicate: Mapping[str, Any], key: PublicKey, now: datetime, skew: timedelta) -> None:
    issued, expires = as_time(predicate["issued"], "issued"), as_time(predicate["expires"], "expires")
    if issued > now + skew:
        raise Denied(f"expected an attestation issued by now, got {predicate['issued']}; set the clock right")
    # both moments: whoever holds a key that ran out could otherwise date a statement back
    if not key.valid(issued) or not key.valid(max(now, issued)):
        raise Denied(
            f"expected a key that is valid now and on {predicate['issued']}, got key {key.id}, valid from "
            f"{time_text(key.not_before)} until {time_text(key.not_after)}; vet again with a valid key"
        )
    if not issued < expires:
        raise Denied(f"expected an expiry after {predicate['issued']}, got {predicate['expires']}; vet again")
    if now >= expires:
        raise Stale(f"expected an attestation in force, got one that expired on {predicate['expires']}; vet again")

"""Signed verdicts: an in-toto statement about the bytes of a submission, in a DSSE envelope, signed with Ed25519.

The subjects are every file and the manifest, so that the verdict speaks of these bytes and no others; the predicate
names the model that the verdict is for, so that it cannot be replayed under another name.

Source    in-toto attestation framework, Statement v1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from vetgate.errors import Altered, Denied, OtherName, Revoked, Stale
from vetgate.trust.dsse import (
    MAX_CLOCK_SKEW,
    PAYLOAD_TYPE,
    STATEMENT_TYPE,
    Envelope,
    check_issued,
    digest,
    pre_authentication,
    read_envelope,
    sign,
    signed_payload,
    statement_in,
)
from vetgate.trust.keys import GATE, TrustRoot
from vetgate.trust.strict_json import as_base64, as_list, as_object, as_sha256, as_text, as_time, parse, time_text

__all__ = [
    "ADMITTED",
    "PAYLOAD_TYPE",
    "Envelope",
    "as_base64",
    "claims",
    "digest",
    "manifest_of",
    "pre_authentication",
    "read_envelope",
    "sign",
    "statement",
    "verdict_predicate",
    "verify",
]

PREDICATE_TYPE = "https://vetgate.dev/attestation/verdict/v1"
MANIFEST_SUBJECT = "manifest:sha256"  # no file of a submission can have a colon in its name
ADMITTED = ("PASS", "WAIVED")  # the verdicts with which a model may be promoted and loaded


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
    reason_records: Sequence[Mapping[str, Any]] = (),
    waivers: Sequence[Mapping[str, Any]] = (),
    approvals: Sequence[Mapping[str, Any]] = (),
    p_value: float | None = None,
    suspects: Sequence[int] = (),
    supplier: str | None = None,
    parent: str | None = None,
    duties_separated: bool = False,
    previous: str | None = None,
    findings: Sequence[str] = (),
    purpose: str = "submission",
    run: str = "",
    second: Mapping[str, Any] | None = None,
    demote_after: datetime | None = None,
    decision: str | None = None,
    guards: Mapping[str, Any] | None = None,
    submitted: str | None = None,
) -> dict[str, Any]:
    """What a verdict says, as JSON; `policy` holds name and sha256, `previous` an earlier statement's digest.

    `parent` is the manifest of the submission that this one repairs, `submitted` that of what was handed in, where
    vetgate wrote these bytes in its place; `duties_separated` says whether the gate ran as
    another user than what it judged. `findings` are the ids of what speaks against the model;
    `reason_records` (`Reason.to_json`) is what decides, `reasons` the same in words. `purpose` is submission
    or rescan; `second` is the independent run that confirmed a rescan's FAIL, and `demote_after` how long it may stay.
    `decision` is the key of the kept record of everything that was judged, `guards` (`AttestedGuards.to_json`) what
    guards the model where it is served.
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
        "reason_records": [dict(record) for record in reason_records],
        "waivers": [dict(waiver) for waiver in waivers],
        "approvals": [dict(approval) for approval in approvals],
        "supplier": supplier,
        "parent": parent,
        "duties_separated": duties_separated,
        "previous": previous,
        "findings": list(findings),
        "purpose": purpose,
        "run": run,
        "second": None if second is None else dict(second),
        "demote_after": None if demote_after is None else time_text(demote_after),
        "decision": decision,
        "guards": None if guards is None else dict(guards),
        "submitted": submitted,
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


def claims(envelope: Envelope) -> dict[str, Any]:
    """The predicate as it stands, its signature NOT verified: for listing and ordering only; raises Denied."""
    return _predicate(statement_in(envelope))[1]


def manifest_of(envelope: Envelope) -> str:
    """The SHA-256 of the manifest that it speaks of, its signature NOT verified; raises Denied."""
    subjects, _ = _predicate(statement_in(envelope))
    return as_sha256(subjects.get(MANIFEST_SUBJECT), MANIFEST_SUBJECT)


def files_of(envelope: Envelope) -> dict[str, str]:
    """Path to SHA-256 of the files that it speaks of, its signature NOT verified; raises Denied."""
    subjects, _ = _predicate(statement_in(envelope))
    return {name: sha256 for name, sha256 in subjects.items() if name != MANIFEST_SUBJECT}


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
    payload, key = signed_payload(envelope, trust, {GATE})
    subjects, predicate = _predicate(parse(payload, "a statement"))
    _check_subjects(subjects, _subjects(files, manifest))
    if predicate["name"] != name:
        raise OtherName(f"expected an attestation for {name}, got one for {predicate['name']}; vet under this name")
    check_issued(as_time(predicate["issued"], "issued"), key, now, max_clock_skew)
    _check_expiry(predicate, now)
    if digest(envelope) in trust.revoked or digest(envelope) in revoked:
        raise Revoked(f"expected an attestation in force, got one for {name} that was revoked; vet again")
    return predicate


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
        raise Altered(f"expected exactly the attested files, got {got}; restore the vetted bytes or vet these")


def _check_expiry(predicate: Mapping[str, Any], now: datetime) -> None:
    issued, expires = as_time(predicate["issued"], "issued"), as_time(predicate["expires"], "expires")
    if not issued < expires:
        raise Denied(f"expected an expiry after {predicate['issued']}, got {predicate['expires']}; vet again")
    if now >= expires:
        raise Stale(f"expected an attestation in force, got one that expired on {predicate['expires']}; vet again")

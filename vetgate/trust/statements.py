"""Signed statements that are no verdicts: of people, of the gate, and of vetting workers about what they found.

Each is an in-toto statement whose subjects follow from its predicate, so that the two can never disagree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vetgate.errors import Denied
from vetgate.trust import dsse
from vetgate.trust.dsse import STATEMENT_TYPE, Envelope
from vetgate.trust.keys import TrustRoot
from vetgate.trust.strict_json import SHA256, as_object, as_text, as_time, parse

(
    SUBMISSION,
    WAIVER,
    APPROVAL,
    REVOCATION,
    PROMOTION,
    LEDGER,
    HEAD,
    EVIDENCE,
    INSPECTION,
    REPAIR,
    EXAMINATION,
    RESCAN,
    GUARDS,
    CONVERSION,
) = KINDS = (
    "submission",
    "waiver",
    "approval",
    "revocation",
    "promotion",
    "ledger",
    "ledger-head",
    "evidence",
    "inspection",
    "repair",
    "examination",
    "rescan",
    "guards",
    "conversion",
)


@dataclass(frozen=True)
class Signed:
    """A statement whose signature was verified: what it says, who says it, and the SHA-256 that names it."""

    predicate: dict[str, Any]
    keyid: str
    digest: str


def sign_statement(kind: str, predicate: Mapping[str, Any], key: Ed25519PrivateKey) -> Envelope:
    """The signed statement; the predicate needs `issued`, a time as `time_text` writes it."""
    as_time(predicate.get("issued"), "issued")
    return dsse.sign(_statement(kind, predicate), key)


def verify_statement(envelope: Envelope, trust: TrustRoot, kind: str, roles: Collection[str], now: datetime) -> Signed:
    """What a statement of this kind says, if a key with one of these roles signed it.

    Raises Denied, also when the key was not valid at the moment of signing or is not at `now`.
    """
    payload, key = dsse.signed_payload(envelope, trust, roles)
    predicate = _predicate(kind, parse(payload, f"a {kind}"))
    dsse.check_issued(as_time(predicate["issued"], "issued"), key, now)
    return Signed(predicate, key.id, dsse.digest(envelope))


def claimed(kind: str, envelope: Envelope) -> dict[str, Any]:
    """What a statement of this kind says, its signature NOT verified: for listing and searching only."""
    return _predicate(kind, dsse.statement_in(envelope))


def _statement(kind: str, predicate: Mapping[str, Any]) -> dict[str, Any]:
    digests = {f"{k}:sha256": v for k, v in predicate.items() if isinstance(v, str) and SHA256.fullmatch(v)}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digests[name]}} for name in sorted(digests)],
        "predicateType": _type_of(kind),
        "predicate": dict(predicate),
    }


def _predicate(kind: str, found: Any) -> dict[str, Any]:
    fields = as_object(found, {"_type", "subject", "predicateType", "predicate"}, f"a {kind}")
    if fields["predicateType"] != _type_of(kind):
        raise Denied(f"expected a {kind}, got a statement of type {fields['predicateType']!r:.80}; name another file")
    predicate = fields["predicate"]
    if not isinstance(predicate, dict):
        raise Denied(f"expected a predicate object, got {type(predicate).__name__}; fetch the {kind} again")
    as_text(predicate.get("issued"), "issued")
    if fields != _statement(kind, predicate):
        raise Denied(f"expected a {kind} about what it says, got other subjects; fetch it again")
    return predicate


def _type_of(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, got {kind!r}")
    return f"https://vetgate.dev/attestation/{kind}/v1"

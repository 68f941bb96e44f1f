"""Revocations in the store: what is there counts, by any writer, because refusing too much is the safe mistake.

One that a gate's or approver's key signed also tells by whom.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.records.attestations import revocation_key
from tasks.store.base import Store
from vetgate.digest import canonical_json
from vetgate.errors import Denied
from vetgate.trust import dsse
from vetgate.trust.keys import APPROVER, GATE, TrustRoot
from vetgate.trust.statements import REVOCATION, claimed, sign_statement, verify_statement
from vetgate.trust.strict_json import as_time, parse, time_text


def save_revocation(store: Store, digest: str, reason: str, key: Ed25519PrivateKey | None, now: datetime) -> str:
    """Revoke the statement with this digest, signed where there is a key; the store's key. Twice changes nothing."""
    said: dict[str, Any] = {"digest": digest, "reason": reason, "issued": time_text(now)}
    store.create(revocation_key(digest), canonical_json(said if key is None else sign_statement(REVOCATION, said, key)))
    return revocation_key(digest)


def said_by(trust: TrustRoot, data: bytes) -> tuple[str | None, str | None]:
    """The reason that a revocation gives, and the id of the trusted key that signed it; None where there is none."""
    try:
        envelope = dsse.read_envelope(data)
        issued = as_time(claimed(REVOCATION, envelope)["issued"], "issued")
        signed = verify_statement(envelope, trust, REVOCATION, {GATE, APPROVER}, issued)
        return str(signed.predicate.get("reason")), signed.keyid
    except Denied:
        return _reason(data), None


def _reason(data: bytes) -> str | None:
    try:
        said = parse(data, "a revocation")
    except Denied:
        return None
    reason = said.get("reason") if isinstance(said, dict) else None
    return reason if isinstance(reason, str) else None

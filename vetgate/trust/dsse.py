"""DSSE envelopes: bytes with one Ed25519 signature by a key of the trust root.

Source    DSSE v1, with the payload type of in-toto statements.
Deviates  Exactly one signature, standard base64 only, no unknown fields: what has two readings is refused.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vetgate.digest import canonical_json
from vetgate.errors import BadSignature, Denied, IssuedLater
from vetgate.trust.keys import GATE, PublicKey, TrustRoot, key_id
from vetgate.trust.strict_json import MAX_BYTES, as_base64, as_list, as_object, as_text, parse, time_text

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MAX_CLOCK_SKEW = timedelta(minutes=5)

Envelope = dict[str, Any]


def sign(statement: Mapping[str, Any], key: Ed25519PrivateKey) -> Envelope:
    """The statement's DSSE envelope, with one signature; raises Denied for one that nobody could read again."""
    try:
        payload = canonical_json(statement)
    except UnicodeEncodeError as error:
        raise Denied(f"expected text in a statement, got {error.object[error.start]!r}; write it out") from error
    signature = key.sign(pre_authentication(PAYLOAD_TYPE, payload))
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key_id(key), "sig": base64.b64encode(signature).decode()}],
    }
    if (size := len(canonical_json(envelope))) > MAX_BYTES:
        raise Denied(f"expected a statement of at most {MAX_BYTES} bytes once it is signed, got {size}; say it in less")
    return envelope


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """The bytes that DSSE signs: both parts with their lengths, so that neither can run into the other."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def read_envelope(data: bytes) -> Envelope:
    """The envelope in bytes of JSON; raises Denied when they are not exactly one."""
    return as_object(parse(data, "an attestation"), {"payloadType", "payload", "signatures"}, "an attestation")


def digest(envelope: Envelope) -> str:
    """SHA-256 in hex of the signed payload: what revocations, approvals and `previous` refer to; raises Denied."""
    return hashlib.sha256(as_base64(envelope.get("payload"), "payload")).hexdigest()


def statement_in(envelope: Envelope) -> Any:
    """The statement as it stands, its signature NOT verified; raises Denied when it is no JSON."""
    return parse(as_base64(envelope.get("payload"), "payload"), "a statement")


def signed_payload(envelope: Envelope, trust: TrustRoot, roles: Collection[str]) -> tuple[bytes, PublicKey]:
    """The payload and the trusted key with one of these roles that signed it; raises Denied."""
    fields = as_object(envelope, {"payloadType", "payload", "signatures"}, "an attestation")
    if fields["payloadType"] != PAYLOAD_TYPE:
        raise Denied(f"expected payload type {PAYLOAD_TYPE}, got {fields['payloadType']!r:.80}; it is no attestation")
    keyid, signature = _signature(fields["signatures"])
    key = trust.key(keyid)
    payload = as_base64(fields["payload"], "payload")
    if not key.signed(pre_authentication(PAYLOAD_TYPE, payload), signature):
        raise BadSignature(
            f"expected a signature by key {key.id}, got one that does not fit; the attestation was altered"
        )
    if key.role not in roles:
        wanted = " or ".join(sorted(roles))
        raise BadSignature(
            f"expected a signature by a key with the role {wanted}, got {key.role}; have such a key sign"
        )
    return payload, key


def _signature(given: Any) -> tuple[str, bytes]:
    """The id of a key, and the one signature that it made."""
    try:
        signatures = as_list(given, "signatures")
        if len(signatures) != 1:
            raise Denied(f"expected exactly one signature, got {len(signatures)}; fetch the attestation again")
        signature = as_object(signatures[0], {"keyid", "sig"}, "a signature")
        return as_text(signature["keyid"], "keyid"), as_base64(signature["sig"], "sig")
    except Denied as error:
        raise BadSignature(str(error)) from error


def check_issued(issued: datetime, key: PublicKey, now: datetime, skew: timedelta = MAX_CLOCK_SKEW) -> None:
    """Raise Denied unless a statement was issued by now, by a key that was valid then and still is."""
    if issued > now + skew:
        # what others sign they can date as they like; a gate asks its clock first
        wrong = IssuedLater if key.role == GATE else Denied
        raise wrong(
            f"expected a statement issued by now, {time_text(now)}, got {time_text(issued)}; set the clock right"
        )
    # both moments: the holder of a key that ran out could otherwise date a statement back
    if not key.valid(issued) or not key.valid(max(now, issued)):
        raise Denied(
            f"expected a key that is valid now and on {time_text(issued)}, got key {key.id}, valid from "
            f"{time_text(key.not_before)} until {time_text(key.not_after)}; have a valid key sign"
        )

"""Attestations in the store: each written once, under a name that its signed payload gives it.

A name that does not fit its content means that one of the two was altered; then nothing about these bytes is
believed any more, because the altered one may have been the newest and a FAIL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tasks.store.base import Store
from vetgate.digest import canonical_json
from vetgate.errors import Denied
from vetgate.trust import attest


@dataclass(frozen=True)
class Attestation:
    """One envelope in the store; `claims` is its predicate, whose signature is not verified yet."""

    key: str
    envelope: attest.Envelope
    claims: dict[str, Any]


def save_attestation(store: Store, manifest_sha256: str, envelope: attest.Envelope) -> str:
    """Write an envelope about these bytes; its key. Saving the same one again changes nothing."""
    key = _key(manifest_sha256, envelope)
    store.create(key, canonical_json(envelope))
    return key


def newest_attestation(store: Store, manifest_sha256: str) -> Attestation | None:
    """The attestation of these bytes that was issued last, or None; raises Denied when any of them was altered.

    Of two issued in the same second the worse one counts.
    """
    found = [attestation_at(store, key) for key in store.list(f"attestations/{manifest_sha256}/")]
    return max(found, key=lambda a: (a.claims["issued"], _badness(a.claims["verdict"]), a.key), default=None)


def attested_manifests(store: Store) -> Iterator[str]:
    """The SHA-256 of every manifest that has an attestation."""
    last = None
    for key in store.list("attestations/"):
        manifest = key.split("/")[1]
        if manifest != last:
            last = manifest
            yield manifest


def is_revoked(store: Store, envelope: attest.Envelope) -> bool:
    """Whether the statement is revoked."""
    return was_revoked(store, attest.digest(envelope))


def was_revoked(store: Store, digest: str) -> bool:
    """Whether the statement with this digest is revoked; who can write to the store can revoke, not attest."""
    return store.exists(revocation_key(digest))


def revocation_key(digest: str) -> str:
    """Where the revocation of the statement with this digest is kept."""
    return f"revocations/{digest}.json"


def attestation_at(store: Store, key: str) -> Attestation:
    """The attestation that is kept under a key; raises Denied when it is not the one that the key names."""
    envelope = attest.read_envelope(store.read(key))
    if key != _key(key.split("/")[1], envelope):
        raise Denied(f"expected {key} to hold the statement that named it, got another; remove it, then vet again")
    return Attestation(key, envelope, attest.claims(envelope))


def _badness(verdict: str) -> int:
    return attest.ADMITTED.index(verdict) if verdict in attest.ADMITTED else len(attest.ADMITTED)


def _key(manifest_sha256: str, envelope: attest.Envelope) -> str:
    issued = str(attest.claims(envelope)["issued"]).replace("-", "").replace(":", "")
    return f"attestations/{manifest_sha256}/{issued}-{attest.digest(envelope)}.json"

"""Attestations in the store: each written once, under a name that its signed payload gives it.

Which one is the newest, the ledger says, and what that one must hold. One whose name does not fit its content is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.records.ledger_chain import START, entry_at, removed
from tasks.records.ledger_state import LedgerState, as_entered
from tasks.store.base import Store
from vetgate.digest import canonical_json
from vetgate.errors import Denied
from vetgate.trust import attest, dsse
from vetgate.trust.keys import GATE
from vetgate.trust.strict_json import as_object, as_sha256


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


def newest_attestation(state: LedgerState, manifest_sha256: str) -> Attestation | None:
    """The attestation of these bytes that the ledger holds last, or None; raises Removed when the store lacks it.

    One of this ledger's gate that is not entered yet counts where it lets nothing through, and is not there where it
    does. Whatever else lies beside it is none.
    """
    told = state.verdict(manifest_sha256)
    newest = None
    if told is not None:
        envelope = attest.read_envelope(as_entered(state.store, told))
        newest = Attestation(told.key, envelope, attest.claims(envelope))
    for key in state.store.list(f"attestations/{manifest_sha256}/"):
        if state.entered(key) is None and (found := _unentered(state, key)) is not None:
            newest = found
    return newest


def digests_on(state: LedgerState, manifest_sha256: str) -> list[str]:
    """The digests of all verdicts on these bytes, in the order in which the ledger holds them."""
    held = state.objects(f"attestations/{manifest_sha256}")
    return [key.removesuffix(".json").rpartition("-")[2] for key in held]


def _unentered(state: LedgerState, key: str) -> Attestation | None:
    """The gate's refusal under a key of which no entry tells; None for anything else."""
    try:
        found = attestation_at(state.store, key)
        dsse.signed_payload(found.envelope, state.trust, {GATE})
        check_ledger(state, after_of(found.claims))
    except (Denied, KeyError):
        return None
    return found if found.claims["verdict"] not in attest.ADMITTED else None


def after_of(claims: Mapping[str, Any]) -> tuple[int, str] | None:
    """Number and SHA-256 of the last entry of the ledger before a verdict was issued; raises Denied for anything else.

    None for a verdict of an earlier version, which named no ledger.
    """
    if claims.get("after") is None:
        return None
    fields = as_object(claims.get("after"), {"sequence", "sha256"}, "the entry before a verdict")
    sequence = fields["sequence"]
    if isinstance(sequence, bool) or not isinstance(sequence, int) or sequence < 0:
        raise Denied(f"expected the number of an entry, got {sequence!r:.80}; vet again")
    return sequence, as_sha256(fields["sha256"], "sha256")


def check_ledger(state: LedgerState, after: tuple[int, str] | None) -> None:
    """Raise Denied unless the ledger has this very entry: a gate may keep several, and one says nothing in another."""
    if after is None:
        return
    sequence, sha256 = after
    entry = entry_at(state.store, state.trust, sequence) if sequence else None
    if sha256 != (START if sequence == 0 else entry.sha256 if entry is not None else None):
        raise Denied(f"expected a verdict of this ledger, got one after another entry {sequence}; vet it here")


def check_named(state: LedgerState, ledger: str) -> None:
    """Raise Denied unless this is the ledger that a person named by its first entry."""
    if not state.end or ledger != state.id:
        raise Denied(f"expected what was signed for this ledger, {state.id}, got it for {ledger}; sign it here")


def is_revoked(state: LedgerState, digest: str) -> bool:
    """Whether the statement with this digest is revoked: in the ledger, or in the store by whoever can write there.

    Raises Removed when the ledger tells of a revocation that the store lacks.
    """
    told = state.revocation(digest)
    if told is None:
        return state.store.exists(revocation_key(digest))
    if not state.store.exists(told.key):
        raise removed(f"expected {told.key}, by which entry {told.sequence} revokes it, got none; restore it")
    return True


def taken_back(state: LedgerState, manifest_sha256: str) -> bool:
    """Whether the newest verdict on these bytes was revoked: then they are vetted anew only when a person asks."""
    told = state.verdict(manifest_sha256)
    if told is None:
        return False
    # a revocation whose object is gone is one all the same
    known = told.digest in state.trust.revoked or state.revocation(told.digest) is not None
    return known or state.store.exists(revocation_key(told.digest))


def revocation_of(state: LedgerState, envelope: attest.Envelope) -> frozenset[str]:
    """The digest of a statement if it is revoked, as `attest.verify` takes it."""
    digest = attest.digest(envelope)
    return frozenset({digest} if is_revoked(state, digest) else ())


def revocation_key(digest: str) -> str:
    """Where the revocation of the statement with this digest is kept."""
    return f"revocations/{digest}.json"


def attestation_at(store: Store, key: str) -> Attestation:
    """The attestation that is kept under a key; raises Denied when it is not the one that the key names."""
    return attestation_in(key, store.read(key))


def attestation_in(key: str, data: bytes) -> Attestation:
    """The attestation in the bytes of the object with this key; raises Denied when it is not the one that it names."""
    envelope = attest.read_envelope(data)
    if key != _key(attest.manifest_of(envelope), envelope):
        raise Denied(f"expected {key} to hold the statement that named it, got another; remove it, then vet again")
    return Attestation(key, envelope, attest.claims(envelope))


def _key(manifest_sha256: str, envelope: attest.Envelope) -> str:
    issued = str(attest.claims(envelope)["issued"]).replace("-", "").replace(":", "")
    return f"attestations/{manifest_sha256}/{issued}-{attest.digest(envelope)}.json"

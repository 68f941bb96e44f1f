"""Entries about what lies in the store: one for each verdict, promotion, waiver, approval and revocation.

The object comes first and its entry after it. Whatever a crash left without an entry is found by a marker that is
written last, so that catching up costs two listings when nothing is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from tasks.records.alias_moves import AliasMove, enter_move, unfinished_move
from tasks.records.attestations import attestation_at
from tasks.records.ledger_chain import Entry, append, gate_key, head, read_entry
from tasks.records.ledger_state import ledger_state
from tasks.records.promotions import promotion_key, promotion_of
from tasks.records.revocations import said_by
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.errors import Denied
from vetgate.shape import Blob
from vetgate.trust import attest, dsse
from vetgate.trust.keys import GATE, TrustRoot
from vetgate.trust.statements import APPROVAL, PROMOTION, WAIVER, claimed
from vetgate.trust.strict_json import as_time
from vetgate.trust.waivers import read_approval, read_waiver

MARKERS = "ledger-index/"


def note(settings: Settings, key: str, *, since: int | None = None) -> Entry | None:
    """Enter the stored object into the ledger, once; None when it was. `since` was the last entry before it existed.

    Raises Denied when the object was not signed by whom it should be.
    """
    store, trust = open_store(settings), gate_key(settings)[1]
    if store.exists(MARKERS + key):
        return None
    kind, subject = _about(store, trust, key)
    if since is None:
        since = head(settings)
        # whatever is entered from here on, `append` finds
        if (number := ledger_state(settings).entered(key)) is not None:
            _mark(store, key)
            return read_entry(store, trust, number)
    return _enter(settings, store, key, kind, subject, since)


def catch_up(settings: Settings, manifest: str | None = None) -> list[Entry]:
    """Enter what a crash left out, of one submission or of everything; what the gate should not sign is passed over."""
    store = open_store(settings)
    folders = [f"{kind}/{manifest}/" if manifest else f"{kind}/" for kind in ("attestations", "waivers")]
    folders += [] if manifest else ["promotions/", "approvals/", "revocations/"]
    missing = [
        key
        for folder in folders
        for marked in [set(store.list(MARKERS + folder))]
        for key in store.list(folder)
        if MARKERS + key not in marked
    ]
    if not missing:
        return []
    trust = gate_key(settings)[1]
    found: dict[str, tuple[str, Blob]] = {}
    for key in missing:
        try:
            found[key] = _about(store, trust, key)
        except Denied:
            continue  # `verify_ledger` tells of it
    if not found:
        return []
    last = head(settings)
    state = ledger_state(settings)
    added = []
    for key, (kind, subject) in found.items():
        move = _move(store, key)
        if move is not None:
            added.append(note_move(settings, move))
        elif state.entered(key) is not None:
            _mark(store, key)
        else:
            added.append(_enter(settings, store, key, kind, subject, last))
    return added


def note_move(settings: Settings, move: AliasMove) -> Entry:
    """Enter the move of an alias onto a version whose promotion is kept, once."""
    entry = enter_move(settings, move)
    _mark(open_store(settings), promotion_key(move.name, move.version))
    return entry


def _move(store: Store, key: str) -> AliasMove | None:
    """The move that a promotion was written for, when it was killed before its entry was."""
    if not key.startswith("promotions/"):
        return None
    _, name, file = key.split("/")
    return unfinished_move(store, name, file.removesuffix(".json"))


def _enter(settings: Settings, store: Store, key: str, kind: str, subject: Blob, since: int) -> Entry:
    entry = append(settings, kind, subject, once=key, since=since)
    _mark(store, key)
    return entry


def _mark(store: Store, key: str) -> None:
    store.create(MARKERS + key, b"{}")


def _about(store: Store, trust: TrustRoot, key: str) -> tuple[str, Blob]:
    """The kind of entry for a stored object and what the entry says; raises Denied when unsigned."""
    data = store.read(key)
    kind, said = _READERS[key.partition("/")[0]](store, trust, key, data)
    return kind, {"key": key, "sha256": hashlib.sha256(data).hexdigest(), **said}


def _verdict(store: Store, trust: TrustRoot, key: str, data: bytes) -> tuple[str, Blob]:
    found = attestation_at(store, key)
    dsse.signed_payload(found.envelope, trust, {GATE})
    said = {name: found.claims.get(name) for name in ("name", "verdict", "purpose", "expires")}
    return "verdict", {**said, "manifest": key.split("/")[1], "attestation": attest.digest(found.envelope)}


def _promotion(store: Store, trust: TrustRoot, key: str, data: bytes) -> tuple[str, Blob]:
    _, name, file = key.split("/")
    issued = as_time(claimed(PROMOTION, dsse.read_envelope(data))["issued"], "issued")
    found = promotion_of(store, trust, name, file.removesuffix(".json"), now=issued)
    assert found is not None  # its bytes are in our hands
    return "promotion", {k: v for k, v in found.predicate().items() if k not in ("files", "issued")}


def _waiver(store: Store, trust: TrustRoot, key: str, data: bytes) -> tuple[str, Blob]:
    envelope = dsse.read_envelope(data)
    found = read_waiver(envelope, trust, as_time(claimed(WAIVER, envelope)["issued"], "issued"))
    if key != f"waivers/{found.manifest}/{found.digest}.json":
        raise Denied(f"expected {key} to hold the waiver that named it, got another; remove it")
    return "waiver", {k: v for k, v in found.to_json().items() if k != "issued"}


def _approval(store: Store, trust: TrustRoot, key: str, data: bytes) -> tuple[str, Blob]:
    envelope = dsse.read_envelope(data)
    found = read_approval(envelope, trust, as_time(claimed(APPROVAL, envelope)["issued"], "issued"))
    if key != f"approvals/{found.of}/{found.keyid}.json":
        raise Denied(f"expected {key} to hold the approval that named it, got another; remove it")
    return "approval", {"of": found.of, "keyid": found.keyid, "approval": found.digest}


def _revocation(store: Store, trust: TrustRoot, key: str, data: bytes) -> tuple[str, Blob]:
    reason, keyid = said_by(trust, data)
    return "revocation", {"digest": key.split("/")[1].removesuffix(".json"), "reason": reason, "by": keyid}


_READERS: dict[str, Callable[[Store, TrustRoot, str, bytes], tuple[str, Blob]]] = {
    "attestations": _verdict,
    "promotions": _promotion,
    "waivers": _waiver,
    "approvals": _approval,
    "revocations": _revocation,
}

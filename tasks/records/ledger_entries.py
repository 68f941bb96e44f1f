"""Entries about what lies in the store: one for each verdict, promotion, waiver, approval and revocation.

The object comes first and its entry after it. Whatever a crash left without an entry is found by asking the ledger for
each object that is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from tasks.records.alias_moves import AliasMove, enter_move, unfinished_move
from tasks.records.attestations import attestation_at
from tasks.records.ledger_chain import Entry, append, gate_key, read_entry
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.records.promotions import promotion_of
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


def note(settings: Settings, key: str) -> Entry:
    """The entry of the stored object, which is made once; raises Denied for one not signed by whom it should be."""
    state = ledger_state(settings)
    if (number := state.entered(key)) is not None:
        return read_entry(state.store, state.trust, number)
    trust = gate_key(settings)[1]
    kind, subject = _about(state.store, trust, key)
    _check_order(state, kind, subject)
    return append(settings, kind, subject, once=key, since=state.end)


def catch_up(settings: Settings, manifest: str | None = None) -> list[Entry]:
    """Enter what a crash left out, of one submission or of everything; what the gate should not sign is passed over."""
    folders = [f"{kind}/{manifest}/" if manifest else f"{kind}/" for kind in ("attestations", "waivers")]
    folders += [] if manifest else ["promotions/", "approvals/", "revocations/"]
    keys = [key for folder in folders for key in open_store(settings).list(folder)]
    if not keys:
        return []
    state = ledger_state(settings)
    missing = [key for key in keys if state.entered(key) is None]
    if not missing:
        return []
    trust = gate_key(settings)[1]
    added = []
    for key in missing:
        try:
            kind, subject = _about(state.store, trust, key)
            _check_order(state, kind, subject)
        except Denied:
            continue  # `verify_ledger` tells of it
        move = _move(state.store, key)
        if move is not None:
            added.append(enter_move(settings, move))
        else:
            added.append(append(settings, kind, subject, once=key, since=state.end))
    return added


def _check_order(state: LedgerState, kind: str, subject: Blob) -> None:
    """Raise Denied for a verdict that lets through and was issued before the newest one on its bytes was entered."""
    if kind != "verdict" or subject["verdict"] not in attest.ADMITTED:
        return
    newest = state.verdict(subject["manifest"])
    if newest is None:
        return
    if subject["after"] is None or subject["after"] < newest.sequence:
        raise Denied(
            f"expected a {subject['verdict']} issued after entry {newest.sequence} of the ledger, got one of before; "
            f"remove {subject['key']} and vet again"
        )


def _move(store: Store, key: str) -> AliasMove | None:
    """The move that a promotion was written for, when it was killed before its entry was."""
    if not key.startswith("promotions/"):
        return None
    _, name, file = key.split("/")
    return unfinished_move(store, name, file.removesuffix(".json"))


def _about(store: Store, trust: TrustRoot, key: str) -> tuple[str, Blob]:
    """The kind of entry for a stored object and what the entry says; raises Denied when unsigned."""
    data = store.read(key)
    kind, said = _READERS[key.partition("/")[0]](store, trust, key, data)
    return kind, {"key": key, "sha256": hashlib.sha256(data).hexdigest(), **said}


def _verdict(store: Store, trust: TrustRoot, key: str, data: bytes) -> tuple[str, Blob]:
    found = attestation_at(store, key)
    dsse.signed_payload(found.envelope, trust, {GATE})
    said = {name: found.claims.get(name) for name in ("name", "verdict", "purpose", "expires", "after")}
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

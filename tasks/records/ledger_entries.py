"""Entries about what lies in the store: one for each verdict, promotion, waiver, approval and revocation.

The object comes first and its entry after it. Whatever a crash left without an entry is found by asking the ledger for
each object that is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from tasks.records.attestations import after_of, attestation_in, check_ledger
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


def note(settings: Settings, key: str, data: bytes | None = None) -> Entry:
    """The entry of the stored object, which is made once; raises Denied for one not signed by whom it should be.

    `data` are its bytes where the gate has just signed them itself.
    """
    state = ledger_state(settings)
    if (number := state.entered(key)) is not None:
        return read_entry(state.store, state.trust, number)
    trust = gate_key(settings)[1]
    kind, subject = _about(state.store, trust, key, data)
    _check_order(state, kind, subject, fresh=data is not None)
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
        except (Denied, KeyError):
            continue  # `verify_ledger` tells of it
        added.append(append(settings, kind, subject, once=key, since=state.end))
    return added


def _check_order(state: LedgerState, kind: str, subject: Blob, *, fresh: bool = False) -> None:
    """Raise Denied for a verdict of another ledger, or one that lets through and was issued before the newest one here.

    One of before the first entry names no ledger: it counts only while this one is empty, or `fresh` from the gate.
    """
    if kind != "verdict":
        return
    after = after_of(subject)
    check_ledger(state, after)
    if subject["verdict"] not in attest.ADMITTED:
        return
    if after[0] == 0 and state.end and not fresh:
        raise Denied(f"expected a verdict of this ledger, got one of before any; remove {subject['key']} and vet again")
    newest = state.verdict(subject["manifest"])
    if newest is not None and after[0] < newest.sequence:
        raise Denied(
            f"expected a {subject['verdict']} issued after entry {newest.sequence} of the ledger, got one of before; "
            f"remove {subject['key']} and vet again"
        )


def _about(store: Store, trust: TrustRoot, key: str, data: bytes | None = None) -> tuple[str, Blob]:
    """The kind of entry for a stored object and what the entry says; raises Denied when unsigned."""
    data = store.read(key) if data is None else data
    kind, said = _READERS[key.partition("/")[0]](store, trust, key, data)
    return kind, {"key": key, "sha256": hashlib.sha256(data).hexdigest(), **said}


def _verdict(store: Store, trust: TrustRoot, key: str, data: bytes) -> tuple[str, Blob]:
    found = attestation_in(key, data)
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

"""Entries about what lies in the store: one for each verdict, waiver, approval, revocation, submitter.

The object comes first and its entry after it. Whatever a crash left without an entry is found by asking the ledger for
each object that is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from tasks.records.attestations import after_of, attestation_in, check_ledger, check_named
from tasks.records.ledger_chain import Entry, append, gate_key, read_entry
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.records.revocations import said_by
from tasks.records.submitters import read_submitter
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.errors import Denied, Removed
from vetgate.formats.plain_text import escaped
from vetgate.shape import Blob
from vetgate.trust import attest, dsse
from vetgate.trust.keys import GATE, TrustRoot
from vetgate.trust.statements import APPROVAL, WAIVER, claimed
from vetgate.trust.strict_json import as_time
from vetgate.trust.waivers import read_approval, read_waiver


@dataclass(frozen=True)
class Statement:
    """What can be revoked: a verdict, waiver or approval (`kind`), and the manifest of the bytes it names, if any."""

    kind: str
    digest: str
    manifest: str | None


KINDS = {"attestations": "verdict", "waivers": "waiver", "approvals": "approval"}
DIGEST_LENGTH = 64
LONGEST_REASON = 1000


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
    _check_known(kind, subject, lambda: _digests(state))
    return append(settings, kind, subject, once=_once(kind, subject), since=state.end)


def catch_up(settings: Settings, manifest: str | None = None) -> list[Entry]:
    """Enter what a crash left out, of one submission or of everything; what the gate should not sign is passed over."""
    folders = [f"{kind}/{manifest}/" if manifest else f"{kind}/" for kind in ("attestations", "waivers", "submitters")]
    folders += [] if manifest else ["approvals/", "revocations/"]
    keys = [key for folder in folders for key in open_store(settings).list(folder)]
    if not keys:
        return []
    state = ledger_state(settings)
    missing = [key for key in keys if state.entered(key) is None]
    if not missing:
        return []
    trust = gate_key(settings)[1]
    added = []
    known = cache(lambda: _digests(state))
    for key in missing:
        try:
            kind, subject = _about(state.store, trust, key)
            _check_order(state, kind, subject)
            _check_known(kind, subject, known)
            added.append(append(settings, kind, subject, once=_once(kind, subject), since=state.end))
        except Removed:
            raise
        except (Denied, KeyError):
            continue  # `verify_ledger` tells of it
    return added


def _check_order(state: LedgerState, kind: str, subject: Blob, *, fresh: bool = False) -> None:
    """Raise Denied for a verdict of another ledger, or for a PASS of before the newest verdict here or its revocation.

    One of before the first entry names no ledger: it counts only while this one is empty, or `fresh` from the gate. A
    waiver is of the ledger that it names. A submitter is entered once.
    """
    if kind == "waiver":
        check_named(state, subject["ledger"])
    if kind == "submitter" and subject["keyid"] in state.signers(subject["manifest"]):
        raise Denied(f"expected a submitter who is not known yet, got {subject['keyid']}; one signature is enough")
    if kind != "verdict":
        return
    newest = state.verdict(subject["manifest"])
    if newest is not None and newest.key == subject["key"]:
        # another process entered this very one since it was asked for
        return
    after = after_of(subject)
    check_ledger(state, after)
    if subject["verdict"] not in attest.ADMITTED:
        return
    if after is not None and after[0] == 0 and state.end and not fresh:
        raise Denied(f"expected a verdict of this ledger, got one of before any; remove {subject['key']} and vet again")
    if newest is not None and (after is None or after[0] < newest.sequence):
        raise Denied(
            f"expected a {subject['verdict']} issued after entry {newest.sequence} of the ledger, got one of before; "
            f"remove {subject['key']} and vet again"
        )
    gone = None if newest is None else state.revocation(newest.digest)
    if gone is not None and (after is None or after[0] < gone.sequence):
        raise Denied(
            f"expected a {subject['verdict']} issued after entry {gone.sequence}, a revocation of the one before, "
            f"got one of before; remove {subject['key']} and vet again"
        )


def _check_known(kind: str, subject: Blob, known: Callable[[], frozenset[str]]) -> None:
    """Raise Denied for a revocation that nobody known signed and that revokes nothing known.

    It is in force while it lies there; but its entry would be missed in the store for ever once it is gone.
    """
    if kind == "revocation" and subject["by"] is None and subject["digest"] not in known():
        raise Denied(
            f"expected a revocation of a known statement, got one of {subject['digest']}; sign it, or remove it"
        )


def statements(state: LedgerState, beginning: str) -> Iterator[Statement]:
    """Every verdict, waiver and approval whose digest begins so: what the ledger tells of, and what it does not yet.

    Nothing is believed of what lies in the store but a signature of whom it should be.
    """
    for folder in KINDS:
        told = state.objects(folder)
        for key in dict.fromkeys([*told, *state.store.list(f"{folder}/")]):
            # only an approval's key does not end with its digest
            if folder == "approvals" or key.removesuffix(".json")[-DIGEST_LENGTH:].startswith(beginning):
                with suppress(Denied, KeyError):
                    found = _statement(state, key, told.get(key))
                    if found.digest.startswith(beginning):
                        yield found


def _statement(state: LedgerState, key: str, number: int | None) -> Statement:
    """The statement that is kept under a key, of which the entry with this number tells, if one does."""
    folder, about, file = key.split("/")
    kind = KINDS[folder]
    said: Mapping[str, Any] = {}
    if number is None:
        said = _about(state.store, state.trust, key)[1]
    elif kind == "approval":
        said = read_entry(state.store, state.trust, number).subject
    if kind == "approval":
        return Statement(kind, str(said["approval"]), None)
    return Statement(kind, file.removesuffix(".json")[-DIGEST_LENGTH:], about)


def _digests(state: LedgerState) -> frozenset[str]:
    return frozenset(found.digest for found in statements(state, ""))


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


def _submitter(store: Store, trust: TrustRoot, key: str, data: bytes) -> tuple[str, Blob]:
    manifest = key.split("/")[1]
    return "submitter", {"manifest": manifest, "keyid": read_submitter(trust, manifest, data)}


def _once(kind: str, subject: Blob) -> str:
    """What must not be entered twice: the object, or that this key signed this submission."""
    return f"submitter:{subject['manifest']}:{subject['keyid']}" if kind == "submitter" else subject["key"]


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
    # what anybody wrote there must not keep it out of the ledger
    brief = None if reason is None else escaped(reason)[:LONGEST_REASON]
    return "revocation", {"digest": key.split("/")[1].removesuffix(".json"), "reason": brief, "by": keyid}


_READERS: dict[str, Callable[[Store, TrustRoot, str, bytes], tuple[str, Blob]]] = {
    "attestations": _verdict,
    "waivers": _waiver,
    "submitters": _submitter,
    "approvals": _approval,
    "revocations": _revocation,
}

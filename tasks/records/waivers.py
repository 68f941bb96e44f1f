"""Waivers and approvals in the store; what was not signed by whom it should be counts as not there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from tasks.records.attestations import check_named, is_revoked
from tasks.records.ledger_state import LedgerState
from tasks.records.submitters import submitters_of
from tasks.store.base import Store
from vetgate.digest import canonical_json
from vetgate.errors import Denied
from vetgate.trust import dsse
from vetgate.trust.dsse import Envelope
from vetgate.trust.keys import TrustRoot
from vetgate.trust.waivers import Approval, Waived, Waiver, counted, read_approval, read_waiver, waived
from vetgate.verdict.policy import WaiverPolicy


def save_waiver(store: Store, manifest_sha256: str, envelope: Envelope) -> str:
    """Keep a signed waiver; its key in the store."""
    key = f"waivers/{manifest_sha256}/{dsse.digest(envelope)}.json"
    store.create(key, canonical_json(envelope))
    return key


def save_approval(store: Store, of: str, keyid: str, envelope: Envelope) -> str:
    """Keep a signed approval of a statement; its key in the store. A key's first approval stays."""
    key = f"approvals/{of}/{keyid}.json"
    store.create(key, canonical_json(envelope))
    return key


def waivers_of(state: LedgerState, manifest_sha256: str, now: datetime) -> list[Waiver]:
    """The waivers on these bytes in this ledger that a trusted key signed, revoked and expired ones included."""
    found = []
    for key in state.store.list(f"waivers/{manifest_sha256}/"):
        with suppress(Denied, KeyError):
            waiver = read_waiver(dsse.read_envelope(state.store.read(key)), state.trust, now)
            check_named(state, waiver.ledger)
            found.append(waiver)
    return [waiver for waiver in found if waiver.manifest == manifest_sha256]


def approvals_of(store: Store, trust: TrustRoot, of: str, now: datetime) -> list[Approval]:
    """The approvals of a statement by keys that may approve, each still to be counted."""
    found = []
    for key in store.list(f"approvals/{of}/"):
        with suppress(Denied, KeyError):
            found.append(read_approval(dsse.read_envelope(store.read(key)), trust, now))
    return [approval for approval in found if approval.of == of]


def approved(state: LedgerState, of: str, manifest_sha256: str, now: datetime) -> tuple[Approval, ...]:
    """The approvals of a statement about these bytes that count."""
    submitters = submitters_of(state, manifest_sha256)
    return counted(approvals_of(state.store, state.trust, of, now), of, submitters, revoked(state))


def waived_by(
    state: LedgerState,
    manifest_sha256: str,
    findings: tuple[str, ...],
    policy: WaiverPolicy,
    now: datetime,
) -> Waived:
    """What covers all these findings on these bytes; raises Denied with what is lacking."""
    store, trust = state.store, state.trust
    waivers = waivers_of(state, manifest_sha256, now)
    return waived(
        findings,
        waivers,
        [approval for waiver in waivers for approval in approvals_of(store, trust, waiver.digest, now)],
        manifest=manifest_sha256,
        policy=policy,
        submitters=submitters_of(state, manifest_sha256),
        now=now,
        revoked=revoked(state),
    )


def revoked(state: LedgerState) -> Callable[[str], bool]:
    """Whether the statement with a digest was revoked, in the trust root, the ledger or the store."""
    return lambda digest: digest in state.trust.revoked or is_revoked(state, digest)

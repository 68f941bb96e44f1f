"""Waive and approve: what people sign, so that a finding on exactly these bytes may pass for some days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.gate.records import notify_gate
from tasks import events
from tasks.records.attestations import check_named, newest_attestation
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.records.submitters import submitters_of
from tasks.records.waivers import approvals_of, approved, revoked, save_approval, save_waiver
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.conversion import find_vetted
from tasks.vetting.intake import Record
from vetgate.errors import BadSubmission, Denied, Stale
from vetgate.shape import Blob
from vetgate.trust import attest, dsse
from vetgate.trust.keys import APPROVER, SUBMITTER, TrustRoot, key_id, load_key, read_trust_root, utc_now
from vetgate.trust.waivers import Waiver, read_waiver, sign_approval, sign_waiver, why_never, why_not
from vetgate.verdict.policy import Policy, load_policy
from vetgate.verdict.wording import render


class UnknownFinding(BadSubmission):
    """The verdict has no such finding; `findings` are those that it has."""

    code = "unknown-finding"

    def __init__(self, asked: str | None, findings: tuple[str, ...]) -> None:
        self.findings = findings
        got = "none" if asked is None else repr(asked)
        super().__init__(f"expected --finding as one of {', '.join(findings) or 'no findings'}, got {got}")


@dataclass(frozen=True)
class Signer:
    """A holder of a key, in an installation; `now` is the moment of signing."""

    settings: Settings
    state: LedgerState
    store: Store
    trust: TrustRoot
    policy: Policy
    key: Ed25519PrivateKey
    now: datetime


def waive(settings: Settings, submission: str, finding: str | None, reason: str, days: int, key: Path) -> Blob:
    """Ask that a finding of a submission's newest verdict be let pass; the waiver and what it still lacks.

    Raises UnknownFinding when the verdict has another, Denied when the policy allows none.
    """
    state = ledger_state(settings)
    store = state.store
    record = find_vetted(settings, submission)
    found = findings_of(state, record)
    if finding is None or finding not in found:
        raise UnknownFinding(finding, found)
    signer = _signer(settings, key, {APPROVER, SUBMITTER})
    most = signer.policy.waivers.max_days
    if not 1 <= days <= most:
        raise Denied(f"expected a waiver for 1 to {most} days, got {days}; the policy's waivers.max_days says so")
    if not reason.strip():
        raise BadSubmission("expected a reason for the waiver, got none; say why the finding may pass")
    if never := why_never(finding, signer.policy.waivers, submitters_of(state, record.id)):
        raise Denied(f"expected a finding that can be waived, got: {render(never)}")
    if not state.end:
        raise Denied(f"expected the verdict on {record.id} in the ledger, got none; `vetgate sweep` has it entered")
    valid = timedelta(days=days)
    envelope = sign_waiver(
        signer.key, ledger=state.id, manifest=record.id, finding=finding, reason=reason, now=signer.now, valid=valid
    )
    made = read_waiver(envelope, signer.trust, signer.now)
    answered = notify_gate(settings, save_waiver(store, record.id, envelope), record.id)
    return {"waiver": made.digest, **made.to_json(), **_standing(signer, made.digest, record.id, answered)}


def approve(settings: Settings, digest: str, key: Path) -> Blob:
    """Consent to the waiver or attestation with this digest, or its beginning; how many consents it has now.

    Raises Denied where this key's consent would not count, Stale when the waiver is no longer in force.
    """
    signer = _signer(settings, key, {APPROVER})
    of, manifest, waiver = _statement(signer, digest)
    submitters = submitters_of(signer.state, manifest)
    if waiver is not None:
        _check_waiver(signer, waiver, submitters)
    if not submitters:
        raise Denied(f"expected a signed submission, got {manifest}, whose submitter is unknown; submit it with a key")
    if key_id(signer.key) in submitters:
        raise Denied("expected an approver who is not the submitter, got the submitter's key; ask another approver")
    envelope = sign_approval(signer.key, of=of, now=signer.now)
    stored = save_approval(signer.store, of, key_id(signer.key), envelope)
    if key_id(signer.key) not in {a.keyid for a in approvals_of(signer.store, signer.trust, of, signer.now)}:
        raise Denied(f"expected {stored} to be this key's approval, got another object; remove it and approve again")
    answered = notify_gate(settings, stored, manifest)
    policy = signer.policy
    needed = policy.promotion.approvals if waiver is None else policy.waivers.approvals
    return {"approved": of, **_standing(signer, of, manifest, answered), "needed": needed}


def findings_of(state: LedgerState, record: Record) -> tuple[str, ...]:
    """What the newest verdict on a submission holds against it; raises Denied when there is no verdict."""
    newest = newest_attestation(state, record.id)
    if newest is None:
        raise Denied(f"expected a verdict on {record.id}, got none; run `vetgate vet` on it")
    return tuple(newest.claims.get("findings") or ())


def _signer(settings: Settings, path: Path, roles: set[str]) -> Signer:
    key, trust, now = load_key(path), read_trust_root(settings.trust_root), utc_now()
    public = trust.key(key_id(key))
    if public.role not in roles:
        raise Denied(f"expected a key with the role {' or '.join(sorted(roles))}, got {public.role}; take another key")
    if not public.valid(now):
        raise Denied(f"expected a key valid now, got one valid until {public.not_after}; have it trusted for longer")
    return Signer(settings, ledger_state(settings), open_store(settings), trust, load_policy(settings.policy), key, now)


def _statement(signer: Signer, prefix: str) -> tuple[str, str, Waiver | None]:
    """Digest and manifest of the one waiver or newest attestation whose digest begins so; the waiver, if it is one."""
    found: list[tuple[str, str, Waiver | None]] = []
    unread: Denied | None = None
    for key in signer.store.list("waivers/"):
        _, manifest, file = key.split("/")
        if file.startswith(prefix):
            try:
                waiver = read_waiver(dsse.read_envelope(signer.store.read(key)), signer.trust, signer.now)
                check_named(signer.state, waiver.ledger)
            except (Denied, KeyError) as error:
                # anyone may have laid it there: it is told of where nothing else is meant
                unread = error if isinstance(error, Denied) else None
                continue
            if (waiver.manifest, f"{waiver.digest}.json") == (manifest, file):
                found.append((waiver.digest, manifest, waiver))
    # the newest verdict on any submission is the ledger's, whatever lies beside it
    for manifest, digest in signer.state.decided("").items():
        if digest.startswith(prefix):
            newest = newest_attestation(signer.state, manifest)
            if newest is not None and attest.digest(newest.envelope) == digest:
                found.append((digest, manifest, None))
    if not found and prefix and unread is not None:
        raise unread
    if len(found) != 1 or not prefix:
        raise BadSubmission(
            f"expected the digest of one waiver or attestation, or its beginning, got {prefix!r}, "
            f"which fits {len(found)}; `vetgate status` names them"
        )
    return found[0]


def _check_waiver(signer: Signer, waiver: Waiver, submitters: frozenset[str]) -> None:
    if never := why_never(waiver.finding, signer.policy.waivers, submitters):
        raise Denied(f"expected a finding that can be waived, got: {render(never)}")
    if why := why_not(waiver, signer.policy.waivers, signer.now, revoked(signer.state)):
        raise Stale(f"expected a waiver in force, got: {waiver.finding} {render(why)}; waive anew")


def _standing(signer: Signer, of: str, manifest: str, answered: Blob) -> Blob:
    """How many approvals a statement has, and what the gate made of them."""
    keys = [a.keyid for a in approved(signer.state, of, manifest, signer.now)]
    waived = answered["waived"] or {}
    if waived.get("verdict") == "WAIVED":
        events.verdict_issued(manifest, "WAIVED", once=waived["attestation"], automatic=False)
    return {
        "manifest_sha256": manifest,
        "approvals": keys,
        "needed": signer.policy.waivers.approvals,
        "attestation": waived.get("attestation"),
        "verdict": waived.get("verdict"),
        "until": waived.get("until"),
        "lacking": waived.get("lacking"),
    }

"""Issue: sign what the gate decided, keep it, and enter it into the ledger; a verdict that people waive too.

Which of several attestations on the same bytes is the newest, the ledger says: never the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from tasks.records.attestations import (
    Attestation,
    attestation_at,
    newest_attestation,
    revocation_of,
    save_attestation,
    taken_back,
)
from tasks.records.ledger_chain import signing_time
from tasks.records.ledger_entries import note
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.records.waivers import waived_by
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.intake import Record, read_record
from vetgate.digest import canonical_json
from vetgate.errors import Denied, Revoked, Stale
from vetgate.shape import Blob
from vetgate.trust import attest
from vetgate.trust.keys import TrustRoot, load_or_create_key, read_trust_root, utc_now
from vetgate.trust.strict_json import as_time, time_text
from vetgate.trust.waivers import Waived
from vetgate.verdict.policy import Policy, load_policy
from vetgate.verdict.reasons import Code, Reason, records
from vetgate.verdict.wording import rendered


@dataclass(frozen=True)
class SigningContext:
    """What issuing goes by: one submission, the policy, and the keys that are believed."""

    settings: Settings
    store: Store
    policy: Policy
    record: Record
    trust: TrustRoot


def signing_context(settings: Settings, manifest_sha256: str) -> SigningContext:
    """The signing context of a submission; the gate's key and trust root are made on first use."""
    load_or_create_key(settings.gate_key, settings.trust_root, now=utc_now())
    store = open_store(settings)
    return SigningContext(
        settings,
        store,
        load_policy(settings.policy),
        read_record(store, manifest_sha256),
        read_trust_root(settings.trust_root),
    )


def issue(context: SigningContext, predicate: Callable[[datetime, str | None], Blob], *, asked: bool = False) -> str:
    """Sign, keep and enter the predicate that is made of the moment and the digest before it; its attestation's key.

    It also says after which entry of the ledger it was issued. Raises Revoked where the newest verdict on these bytes
    was revoked, unless a person `asked` for another.
    """
    record, settings = context.record, context.settings
    key = load_or_create_key(settings.gate_key, settings.trust_root, now=utc_now())
    state = ledger_state(settings)
    if not asked:
        check_not_taken_back(state, record.id)
    now = signing_time(settings, utc_now()).replace(microsecond=0)
    try:
        newest = newest_attestation(state, record.id)
    except Denied:
        # an earlier one was altered: promotion will refuse these bytes, and this statement cannot name it
        newest = None
    previous = attest.digest(newest.envelope) if newest else None
    stated = attest.statement(record.manifest.digests, record.id, {**predicate(now, previous), "after": state.last})
    envelope = attest.sign(stated, key)
    saved = save_attestation(context.store, record.id, envelope)
    # what was signed is entered, not what is read back: who removes it in between must not lose a FAIL
    note(settings, saved, canonical_json(envelope))
    return saved


def check_not_taken_back(state: LedgerState, manifest_sha256: str) -> None:
    """Raise Revoked where the newest verdict on these bytes was revoked."""
    if taken_back(state, manifest_sha256):
        raise Revoked(
            f"expected nobody to have revoked the newest verdict on {manifest_sha256}, got a revocation; run "
            "`vetgate vet` on it if it is to be vetted again"
        )


def newest_verified(context: SigningContext) -> tuple[Attestation, Blob] | None:
    """The newest attestation on these bytes and its predicate, which this gate's trust root vouches for; None without.

    It may have expired. Raises Denied when it is not the gate's, Stale when it was revoked.
    """
    state = ledger_state(context.settings)
    newest = newest_attestation(state, context.record.id)
    if newest is None:
        return None
    stated = attest.verify(
        newest.envelope,
        context.trust,
        name=context.record.submission.name,
        files=context.record.manifest.digests,
        manifest=context.record.id,
        now=as_time(newest.claims["issued"], "issued"),
        revoked=revocation_of(state, newest.envelope),
    )
    return newest, stated


def waivers_on(context: SigningContext, findings: tuple[str, ...]) -> Waived:
    """What covers all these findings now; raises Denied with what is lacking."""
    state = ledger_state(context.settings)
    return waived_by(state, context.record.id, findings, context.policy.waivers, utc_now())


def waived_predicate(predicate: Blob, waived: Waived) -> Blob:
    """The predicate of a verdict as WAIVED, with the waivers and approvals, expiring with the first of them."""
    expires = min(as_time(predicate["expires"], "expires"), waived.expires)
    named = [
        Reason(Code.WAIVED_UNTIL, figures={"until": waiver.expires, "finding": waiver.finding, "said": waiver.reason})
        for waiver in waived.waivers
    ]
    return {
        **predicate,
        "verdict": "WAIVED",
        "expires": time_text(expires),
        "waivers": [waiver.to_json() for waiver in waived.waivers],
        "approvals": [approval.to_json() for approval in waived.approvals],
        "reasons": [*predicate["reasons"], *rendered(named)],
        "reason_records": [*(predicate.get("reason_records") or ()), *records(named)],
        "demote_after": None,
    }


def issue_waived(settings: Settings, manifest_sha256: str) -> Blob:
    """Issue a WAIVED attestation if every finding of the newest verdict is covered; which, or what is lacking."""
    context = signing_context(settings, manifest_sha256)
    answer: Blob = {"manifest": manifest_sha256, "attestation": None, "until": None, "lacking": None}
    try:
        found = newest_verified(context)
        if found is None:
            raise Denied(f"expected a verdict on {manifest_sha256}, got none; run `vetgate vet` on it")
        newest, stated = found
        if stated["verdict"] not in attest.ADMITTED:
            newest = _waived(context, stated)
    except Denied as error:
        return {**answer, "lacking": str(error)}
    return {
        **answer,
        "attestation": newest.key,
        "until": newest.claims["expires"],
        "verdict": newest.claims["verdict"],
    }


def _waived(context: SigningContext, stated: Blob) -> Attestation:
    """The new attestation that a verdict with these claims is waived; raises Denied when it cannot be."""
    if utc_now() >= as_time(stated["expires"], "expires"):
        raise Stale(f"expected a verdict in force, got one that expired on {stated['expires']}; vet again")
    if stated["policy"].get("sha256") != context.policy.digest:
        raise Stale(
            f"expected a verdict under policy {context.policy.name} as it is now, got one under another; vet again"
        )
    covering = waivers_on(context, tuple(stated.get("findings") or ()))
    key = issue(
        context,
        lambda now, previous: waived_predicate({**stated, "issued": time_text(now), "previous": previous}, covering),
    )
    return attestation_at(context.store, key)

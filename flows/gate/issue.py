"""Issue: sign what the gate decided, keep it, and enter it into the ledger; a verdict that people waive too.

An attestation is always issued after the newest one on the same bytes, so that their order is never in doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tasks.records.attestations import Attestation, attestation_at, is_revoked, newest_attestation, save_attestation
from tasks.records.ledger import head, note
from tasks.records.waivers import waived_by
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.intake import Record, read_record
from vetgate.errors import Denied, Stale
from vetgate.trust import attest
from vetgate.trust.keys import TrustRoot, load_or_create_key, read_trust_root, utc_now
from vetgate.trust.strict_json import as_time, time_text
from vetgate.trust.waivers import Waived
from vetgate.verdict.policy import Policy, load_policy
from vetgate.verdict.reasons import Code, Reason, records
from vetgate.verdict.wording import rendered

Blob = dict[str, Any]
# of which an attestation may be ahead of the clock because another was issued in the same second
MOST_AHEAD = timedelta(minutes=1)


@dataclass(frozen=True)
class Docket:
    """What issuing goes by: one submission, the policy, and the keys that are believed."""

    settings: Settings
    store: Store
    policy: Policy
    record: Record
    trust: TrustRoot


def docket_of(settings: Settings, manifest_sha256: str) -> Docket:
    """The docket of a submission; the gate's key and trust root are made on first use."""
    load_or_create_key(settings.gate_key, settings.trust_root, now=utc_now())
    store = open_store(settings)
    return Docket(
        settings,
        store,
        load_policy(settings.policy),
        read_record(store, manifest_sha256),
        read_trust_root(settings.trust_root),
    )


def issue(docket: Docket, predicate: Callable[[datetime, str | None], Blob]) -> str:
    """Sign, keep and enter the predicate that is made of the moment and the digest before it; its attestation's key."""
    record, settings = docket.record, docket.settings
    key = load_or_create_key(settings.gate_key, settings.trust_root, now=utc_now())
    since = head(settings)
    now = utc_now().replace(microsecond=0)
    try:
        newest = newest_attestation(docket.store, record.id)
    except Denied:
        # somebody altered an earlier one: promotion will refuse these bytes, and this statement cannot name it
        newest = None
    if newest is not None:
        after = as_time(newest.claims["issued"], "issued") + timedelta(seconds=1)
        now = max(now, min(after, now + MOST_AHEAD))
    previous = attest.digest(newest.envelope) if newest else None
    stated = attest.statement(record.manifest.digests, record.id, predicate(now, previous))
    kept = save_attestation(docket.store, record.id, attest.sign(stated, key))
    note(settings, kept, since=since)
    return kept


def newest_verified(docket: Docket) -> tuple[Attestation, Blob] | None:
    """The newest attestation on these bytes and its predicate, which this gate's trust root vouches for; None without.

    It may have expired. Raises Denied when it is not the gate's, Stale when it was revoked.
    """
    newest = newest_attestation(docket.store, docket.record.id)
    if newest is None:
        return None
    stated = attest.verify(
        newest.envelope,
        docket.trust,
        name=docket.record.submission.name,
        files=docket.record.manifest.digests,
        manifest=docket.record.id,
        now=as_time(newest.claims["issued"], "issued"),
        revoked={attest.digest(newest.envelope)} if is_revoked(docket.store, newest.envelope) else (),
    )
    return newest, stated


def waivers_on(docket: Docket, findings: tuple[str, ...]) -> Waived:
    """What covers all these findings now; raises Denied with what is lacking."""
    return waived_by(docket.store, docket.trust, docket.record.id, findings, docket.policy.waivers, utc_now())


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
    docket = docket_of(settings, manifest_sha256)
    answer: Blob = {"manifest": manifest_sha256, "attestation": None, "until": None, "lacking": None}
    try:
        found = newest_verified(docket)
        if found is None:
            raise Denied(f"expected a verdict on {manifest_sha256}, got none; run `vetgate vet` on it")
        newest, stated = found
        if stated["verdict"] not in attest.ADMITTED:
            newest = _waived(docket, stated)
    except Denied as error:
        return {**answer, "lacking": str(error)}
    return {
        **answer,
        "attestation": newest.key,
        "until": newest.claims["expires"],
        "verdict": newest.claims["verdict"],
    }


def _waived(docket: Docket, stated: Blob) -> Attestation:
    """The new attestation that a verdict with these claims is waived; raises Denied when it cannot be."""
    if utc_now() >= as_time(stated["expires"], "expires"):
        raise Stale(f"expected a verdict in force, got one that expired on {stated['expires']}; vet again")
    if stated["policy"].get("sha256") != docket.policy.digest:
        raise Stale(
            f"expected a verdict under policy {docket.policy.name} as it is now, got one under another; vet again"
        )
    covering = waivers_on(docket, tuple(stated.get("findings") or ()))
    key = issue(
        docket,
        lambda now, previous: waived_predicate({**stated, "issued": time_text(now), "previous": previous}, covering),
    )
    return attestation_at(docket.store, key)

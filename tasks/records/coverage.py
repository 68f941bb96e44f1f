"""Whether a version in production is covered: the gate promoted it, and its newest verdict still lets it stay.

Promotion, reconciliation and the serving side ask the same question here, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tasks.records.attestations import Attestation, newest_attestation, revocation_of
from tasks.records.ledger_state import LedgerState, as_entered, ledger_state
from tasks.records.promotions import Promotion, promotion_in, promotion_of
from tasks.records.proven_time import moment_after
from tasks.records.waivers import revoked
from tasks.settings import Settings
from tasks.store.base import Store
from vetgate.errors import Denied, NotPassed, Stale
from vetgate.trust import attest
from vetgate.trust.keys import TrustRoot, utc_now
from vetgate.trust.strict_json import as_time
from vetgate.trust.waivers import waived_until


@dataclass(frozen=True)
class Coverage:
    """What covers a version: which bytes (path to SHA-256, and their manifest's), by which verdict, until when.

    `claims` is the verified predicate of the attestation; `grace` says that it is a FAIL whose time is not yet up.
    """

    manifest: str
    files: Mapping[str, str]
    attestation: Attestation
    promotion: Promotion
    claims: dict[str, Any]
    until: datetime
    grace: bool


def covered(
    settings: Settings,
    name: str,
    version: str,
    source: str,
    *,
    now: datetime | None = None,
    state: LedgerState | None = None,
) -> Coverage:
    """What covers this version of prod.<name>, whose bytes lie at `source`; raises Denied or Stale with the reason.

    A caller that asks for many hands in the `state` of the ledger and a moment that is not before it. Otherwise it is
    read anew, and raises WrongClock where the clock is behind it.
    """
    moment = now or utc_now()
    if state is None:
        state = ledger_state(settings)
        moment = moment_after(state, moment)
    promotion = _at(entered_promotion(state, name, version, moment), name, version, source)
    newest = newest_attestation(state, promotion.manifest)
    if newest is None:
        raise Denied(f"expected a verdict on {promotion.manifest}, got none; run `vetgate vet` on it")
    claims = attest.verify(
        newest.envelope,
        state.trust,
        name=name,
        files=promotion.files,
        manifest=promotion.manifest,
        now=moment,
        revoked=revocation_of(state, newest.envelope),
    )
    until, grace = admitted_until(state, claims, moment)
    return Coverage(promotion.manifest, promotion.files, newest, promotion, claims, until, grace)


def entered_promotion(state: LedgerState, name: str, version: str, now: datetime) -> Promotion | None:
    """The promotion of a version of prod.<name> that the ledger tells of, or None; raises Denied for another there."""
    told = state.promotion(name, version)
    entered = None if told is None else as_entered(state.store, told)
    return None if entered is None else promotion_in(name, version, entered, state.trust, now=now)


def promoted_at(store: Store, trust: TrustRoot, name: str, version: str, source: str, now: datetime) -> Promotion:
    """The gate's promotion of this version of prod.<name> with its bytes at `source`; raises Denied where it has none.

    It needs no ledger: what the gate never promoted is no better for a ledger that is broken.
    """
    return _at(promotion_of(store, trust, name, version, now=now), name, version, source)


def _at(promotion: Promotion | None, name: str, version: str, source: str) -> Promotion:
    if promotion is None:
        raise Denied(
            f"expected version {version} of prod.{name} to be the gate's, got one it never promoted; promote it"
        )
    if promotion.source != source:
        raise Denied(
            f"expected version {version} of prod.{name} at {promotion.source}, got {source}; register the vetted bytes"
        )
    return promotion


def admitted_until(state: LedgerState, claims: Mapping[str, Any], now: datetime) -> tuple[datetime, bool]:
    """Until when a verified verdict lets a model stay, and whether that is but a grace; raises Denied or Stale."""
    verdict, expires = claims["verdict"], as_time(claims["expires"], "expires")
    if verdict == "PASS":
        return expires, False
    if verdict == "WAIVED":
        return min(expires, waived_until(claims, now, revoked(state))), False
    if verdict == "FAIL" and claims.get("purpose") == "rescan" and claims.get("demote_after") is not None:
        demote_after = as_time(claims["demote_after"], "demote_after")
        if now >= demote_after:
            raise Stale(f"expected {claims['name']} to pass its rescan, got FAIL, whose grace ended {demote_after}")
        return min(expires, demote_after), True
    why = "; ".join(map(str, claims.get("reasons") or ())) or "see its report"
    raise NotPassed(f"expected a PASS for {claims['name']}, got {verdict}: {why}")

"""Waivers: a finding on exactly these bytes may pass until a day, if enough people who are not the submitter approve.

Who may be counted is decided here, from signed statements alone. One key counts once; a key of another role, one out
of its window, and the submitter's do not count at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vetgate.errors import Denied, Revoked, Stale
from vetgate.trust.dsse import Envelope
from vetgate.trust.keys import APPROVER, SUBMITTER, TrustRoot, key_id
from vetgate.trust.statements import APPROVAL, WAIVER, sign_statement, verify_statement
from vetgate.trust.strict_json import as_list, as_object, as_sha256, as_text, as_time, time_text
from vetgate.verdict.findings import NOT_UNDERSTOOD, UNEXPLAINED
from vetgate.verdict.policy import WaiverPolicy
from vetgate.verdict.reasons import Code, Reason
from vetgate.verdict.wording import render

IsRevoked = Callable[[str], bool]


@dataclass(frozen=True)
class Waiver:
    """A signed request that a finding on the bytes of this manifest be let pass; `digest` names it.

    `ledger` is the SHA-256 of the first entry of the one ledger in which it counts.
    """

    digest: str
    ledger: str
    manifest: str
    finding: str
    reason: str
    requested_by: str
    issued: str
    expires: str

    def to_json(self) -> dict[str, Any]:
        """The waiver as attestations list it."""
        return asdict(self)


@dataclass(frozen=True)
class Approval:
    """One key's signed consent to the waiver or attestation whose digest is `of`; `digest` names it."""

    digest: str
    of: str
    keyid: str
    issued: str

    def to_json(self) -> dict[str, Any]:
        """The approval as attestations list it."""
        return asdict(self)


@dataclass(frozen=True)
class Waived:
    """What covers every finding of a verdict, until the first of the waivers runs out."""

    waivers: tuple[Waiver, ...]
    approvals: tuple[Approval, ...]
    expires: datetime


def sign_waiver(
    key: Ed25519PrivateKey, *, ledger: str, manifest: str, finding: str, reason: str, now: datetime, valid: timedelta
) -> Envelope:
    """A waiver in a ledger, signed by the one who asks for it."""
    predicate = {
        "ledger": as_sha256(ledger, "ledger"),
        "manifest": as_sha256(manifest, "manifest"),
        "finding": as_text(finding, "finding"),
        "reason": as_text(reason, "reason"),
        "requested_by": key_id(key),
        "issued": time_text(now),
        "expires": time_text(now + valid),
    }
    return sign_statement(WAIVER, predicate, key)


def sign_approval(key: Ed25519PrivateKey, *, of: str, now: datetime) -> Envelope:
    """The consent of a key's owner to the waiver or attestation with this digest."""
    said = {"digest": as_sha256(of, "digest"), "approver": key_id(key), "issued": time_text(now)}
    return sign_statement(APPROVAL, said, key)


def read_waiver(envelope: Envelope, trust: TrustRoot, now: datetime) -> Waiver:
    """The waiver in an envelope, which a submitter or approver signed himself; raises Denied."""
    signed = verify_statement(envelope, trust, WAIVER, {APPROVER, SUBMITTER}, now)
    names = {"ledger", "manifest", "finding", "reason", "requested_by", "issued", "expires"}
    fields = {k: as_text(v, k) for k, v in as_object(signed.predicate, names, "a waiver").items()}
    if fields["requested_by"] != signed.keyid:
        raise Denied(f"expected a waiver requested by key {signed.keyid}, got {fields['requested_by']}; sign it anew")
    if as_time(fields["expires"], "expires") <= as_time(fields["issued"], "issued"):
        raise Denied(f"expected an expiry after {fields['issued']}, got {fields['expires']}; sign it anew")
    for field in ("ledger", "manifest"):
        as_sha256(fields[field], field)
    return Waiver(digest=signed.digest, **fields)


def read_approval(envelope: Envelope, trust: TrustRoot, now: datetime) -> Approval:
    """The approval in an envelope, which a key with the role of an approver signed; raises Denied."""
    signed = verify_statement(envelope, trust, APPROVAL, {APPROVER}, now)
    fields = as_object(signed.predicate, {"digest", "approver", "issued"}, "an approval")
    # named in what is signed, so that the approvals of two people never have one digest
    if fields["approver"] != signed.keyid:
        raise Denied(f"expected an approval by key {signed.keyid}, got {fields['approver']}; sign it anew")
    return Approval(signed.digest, as_sha256(fields["digest"], "digest"), signed.keyid, fields["issued"])


def counted(
    approvals: Iterable[Approval], of: str, submitters: Collection[str], revoked: IsRevoked
) -> tuple[Approval, ...]:
    """The approvals of one statement that count: one for each key, none of a submitter's, none that was revoked.

    Where no submitter is known nothing counts, because the approver may be the submitter.
    """
    if not submitters:
        return ()
    by_key = {
        approval.keyid: approval
        for approval in approvals
        if approval.of == of and approval.keyid not in submitters and not revoked(approval.digest)
    }
    return tuple(by_key[keyid] for keyid in sorted(by_key))


def waived(
    findings: Collection[str],
    waivers: Iterable[Waiver],
    approvals: Collection[Approval],
    *,
    manifest: str,
    policy: WaiverPolicy,
    submitters: Collection[str],
    now: datetime,
    revoked: IsRevoked,
) -> Waived:
    """What covers all these findings on the bytes of a manifest; raises Denied with what each of the others lacks."""
    given = list(waivers)
    chosen: list[tuple[Waiver, tuple[Approval, ...]]] = []
    lacking: list[str] = []
    for finding in findings:
        usable: list[tuple[Waiver, tuple[Approval, ...]]] = []
        never = why_never(finding, policy, submitters)
        why = render(never or Reason(Code.NO_WAIVER, figures={"finding": finding}))
        for waiver in given if never is None else ():
            if (waiver.manifest, waiver.finding) != (manifest, finding):
                continue
            found = counted(approvals, waiver.digest, submitters, revoked)
            reason = why_not(waiver, policy, now, revoked) or too_few(len(found), policy)
            if reason is None:
                usable.append((waiver, found))
            else:
                why = f"{finding} {render(reason)}"
        if usable:
            chosen.append(max(usable, key=lambda pair: pair[0].expires))
        else:
            lacking.append(why)
    if lacking or not chosen:
        raise Denied(f"expected every finding on {manifest} to be waived, got: {'; '.join(lacking) or 'no finding'}")
    return Waived(
        tuple(waiver for waiver, _ in chosen),
        tuple(dict.fromkeys(approval for _, found in chosen for approval in found)),
        min(as_time(waiver.expires, "expires") for waiver, _ in chosen),
    )


def why_never(finding: str, policy: WaiverPolicy, submitters: Collection[str]) -> Reason | None:
    """Why no waiver can cover this finding of this submission, or None."""
    for code, holds in (
        (Code.WAIVERS_NOT_ALLOWED, not policy.allowed),
        (Code.NEVER_WAIVED_UNREAD, finding == NOT_UNDERSTOOD),
        (Code.NEVER_WAIVED_UNEXPLAINED, finding == UNEXPLAINED),
        (Code.NEVER_WAIVED_UNSIGNED, not submitters),
    ):
        if holds:
            return Reason(code, figures={"finding": finding})
    return None


def why_not(waiver: Waiver, policy: WaiverPolicy, now: datetime, revoked: IsRevoked) -> Reason | None:
    """Why a waiver is not in force, or None; its words follow the finding's name."""
    issued, expires = as_time(waiver.issued, "issued"), as_time(waiver.expires, "expires")
    if revoked(waiver.digest):
        return Reason(Code.WAIVER_REVOKED)
    if now >= expires:
        return Reason(Code.WAIVER_EXPIRED, figures={"expires": waiver.expires})
    if expires - issued > timedelta(days=policy.max_days):
        return Reason(Code.WAIVER_TOO_LONG, figures={"most": policy.max_days})
    return None


def too_few(approvals: int, policy: WaiverPolicy) -> Reason | None:
    """That so many approvals are less than the policy asks for, or None; its words follow the finding's name."""
    if approvals >= policy.approvals:
        return None
    return Reason(Code.TOO_FEW_APPROVALS, figures={"approvals": approvals, "needed": policy.approvals})


def waived_until(claims: Mapping[str, Any], now: datetime, revoked: IsRevoked) -> datetime:
    """Until when every waiver in a verified WAIVED verdict holds; raises Stale when one is revoked or ran out."""
    waivers, approvals = as_list(claims.get("waivers"), "waivers"), as_list(claims.get("approvals"), "approvals")
    if not waivers or not approvals:
        raise Denied(
            f"expected a waived verdict on {claims.get('name')} with waivers and approvals, got none; vet again"
        )
    for given in (*waivers, *approvals):
        if revoked(as_sha256(given.get("digest") if isinstance(given, dict) else None, "digest")):
            raise Revoked(
                f"expected waivers in force, got {given['digest']}, which was revoked; waive anew, or vet again"
            )
    until = min(as_time(given.get("expires"), "expires") for given in waivers)
    if now >= until:
        raise Stale(f"expected waivers in force, got one that expired on {time_text(until)}; waive anew, or vet again")
    return until

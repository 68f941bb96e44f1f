"""Admit: whether the newest verdict on a submission lets exactly its bytes through now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.records.attestations import Attestation, newest_attestation, revocation_of
from tasks.records.coverage import admitted_until
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.records.submitters import submitters_of
from tasks.records.waivers import approved
from tasks.settings import Settings
from tasks.store.base import Store, fetch_files
from tasks.vetting.intake import MAX_BYTES, MAX_FILES
from vetgate.errors import Altered, Denied, NotPassed, NotUnderstood, Stale
from vetgate.formats.manifest import Manifest, hash_directory
from vetgate.formats.submission import read_submission
from vetgate.trust import attest
from vetgate.verdict.policy import Policy, load_policy


@dataclass(frozen=True)
class Request:
    """One wish to promote; `now` is the moment at which the attestation must be in force."""

    settings: Settings
    name: str
    alias: str
    store: Store
    now: datetime
    on_step: Callable[[str], None]


@dataclass(frozen=True)
class Admitted:
    """What may be let through: the bytes, the attestation that says so, who approved, and the version's tags."""

    manifest: Manifest
    attestation: Attestation
    digest: str
    approvals: tuple[str, ...]
    tags: dict[str, str]


def admitted_by(asked: Request, manifest_sha256: str, room: Path) -> Admitted:
    """The manifest of the quarantined bytes, fetched to `room`, and the attestation that lets them through."""
    state = ledger_state(asked.settings)
    newest = newest_attestation(state, manifest_sha256)
    if newest is None:
        raise Denied(f"expected a verdict on {manifest_sha256}, got none; run `vetgate vet` on it")
    named = attest.files_of(newest.envelope)
    manifest = hashed(fetch_files(asked.store, f"quarantine/{manifest_sha256}", room, named, most=MAX_BYTES))
    digest = attest.digest(newest.envelope)
    stated = attest.verify(
        newest.envelope,
        state.trust,
        name=asked.name,
        files=manifest.digests,
        manifest=manifest.sha256,
        now=asked.now,
        revoked=revocation_of(state, newest.envelope),
    )
    if manifest.sha256 != manifest_sha256:
        raise Denied(f"expected the bytes of {manifest_sha256}, got those of {manifest.sha256}; submit them again")
    if stated["verdict"] not in attest.ADMITTED:
        why = "; ".join(map(str, stated.get("reasons") or ())) or "see its report"
        raise NotPassed(f"expected a PASS for {manifest_sha256}, got {stated['verdict']}: {why}")
    admitted_until(state, stated, asked.now)
    policy = _under_policy(asked, stated, room)
    tags = {
        "vet.verdict": str(stated["verdict"]),
        "vet.attestation": newest.key,
        "vet.attestation_sha256": digest,
        "vet.policy_sha256": str(stated["policy"]["sha256"]),
        "vet.issued": str(stated["issued"]),
        "vet.expires": str(stated["expires"]),
    }
    return Admitted(manifest, newest, digest, _approvals(asked, state, policy, digest, manifest_sha256), tags)


def _approvals(
    asked: Request, state: LedgerState, policy: Policy, digest: str, manifest_sha256: str
) -> tuple[str, ...]:
    """The keys that approved the attestation, as many as the policy demands or more; raises Denied."""
    if not policy.promotion.approvals:
        return ()
    keys = tuple(a.keyid for a in approved(state, digest, manifest_sha256, asked.now))
    if len(keys) < policy.promotion.approvals:
        signed = bool(submitters_of(state, manifest_sha256))
        why = "" if signed else ": the submission is not signed, so that its submitter is unknown"
        raise Denied(
            f"expected {policy.promotion.approvals} approvals of attestation {digest}, got {len(keys)}{why}; "
            f"run `vetgate approve {digest[:12]}` with another approver's key"
        )
    return keys


def _under_policy(asked: Request, stated: dict[str, Any], directory: Path) -> Policy:
    """The policy as it is now, which the verdict must be under; raises Stale or Denied."""
    policy = load_policy(asked.settings.policy)
    under = stated.get("policy")
    if not isinstance(under, dict) or under.get("sha256") != policy.digest:
        raise Stale(f"expected a verdict under policy {policy.name} as it is now, got one under another; vet again")
    submission = read_submission(directory)
    if submission.name != asked.name:
        raise Denied(f"expected a submission of {asked.name}, got one of {submission.name}; promote it under its name")
    if submission.format not in policy.promote_formats:
        allowed = ", ".join(policy.promote_formats)
        raise Denied(f"expected one of the formats {allowed}, got {submission.format}; hand in one of these")
    return policy


def hashed(directory: Path) -> Manifest:
    try:
        return hash_directory(directory, max_bytes=MAX_BYTES, max_files=MAX_FILES)
    except NotUnderstood as error:
        raise Altered(f"expected the plain files that were submitted: {error}") from error

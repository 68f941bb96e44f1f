"""Promote: let exactly the vetted bytes of a model into production, and nothing else.

The attestation is verified against the bytes in quarantine, these go to the vetted part of the store and are hashed
again there, a fresh version of prod.<name> is registered, and its alias is set last: at whatever step this is killed,
production is what it was, and doing it again ends the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.attestations import Attestation, attested_manifests, is_revoked, newest_attestation
from tasks.intake import MAX_BYTES, MAX_FILES, workroom
from tasks.registry_promoted import register_promoted
from tasks.settings import Settings
from tasks.store import Store, fetch_all, open_store
from vetgate import attest
from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, Denied, NotUnderstood, Stale
from vetgate.formats.manifest import Manifest, hash_directory
from vetgate.formats.submission import read_submission
from vetgate.keys import read_trust_root, utc_now
from vetgate.policy import load_policy

ALIASES = ("champion", "challenger")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
IDENTITY = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class Request:
    """One wish to promote; `now` is the moment at which the attestation must be in force."""

    settings: Settings
    name: str
    store: Store
    now: datetime


def promote(
    settings: Settings,
    name: str,
    submission: str | None = None,
    alias: str = "champion",
    *,
    now: datetime | None = None,
    told: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """What was promoted as prod.<name>: the submission with this manifest SHA-256, by default the newest PASS.

    Raises Denied with the reason, Stale when the attestation or its policy is no longer in force. `told` hears of every
    step after it is done.
    """
    if not NAME.fullmatch(name) or alias not in ALIASES:
        raise BadSubmission(f"expected a model's name and one of {', '.join(ALIASES)}, got {name!r} and {alias!r}")
    asked = Request(settings, name, open_store(settings), now or utc_now())
    manifest_sha256 = _newest_pass(asked) if submission is None else _identified(asked, submission)
    with workroom(settings) as room:
        manifest, attestation, tags = _admitted(asked, manifest_sha256, room / "quarantine")
        told("verified")
        vetted = _copied(asked.store, manifest, room, told)
        document = room / "attestation.json"
        document.write_bytes(canonical_json(attestation.envelope))
        promoted = register_promoted(
            settings, name, manifest, vetted, alias=alias, tags=tags, documents={"attestation": document}, told=told
        )
    return {
        "name": name,
        "model": f"prod.{name}",
        "version": promoted.version,
        "alias": alias,
        "submission": manifest.sha256,
        "manifest_sha256": manifest.sha256,
        "verdict": attestation.claims["verdict"],
        "expires": attestation.claims["expires"],
        "attestation": attestation.key,
        "source": promoted.source,
        "vetted": asked.store.url(f"vetted/{manifest.sha256}"),
        "previous": promoted.previous,
        "mlflow_run": promoted.run_id,
    }


def _identified(asked: Request, submission: str) -> str:
    if not IDENTITY.fullmatch(submission):
        raise BadSubmission(f"expected the SHA-256 of a manifest, or its beginning, got {submission!r}")
    if len(submission) == 64:
        return submission
    found = [key[len("submissions/") : -len(".json")] for key in asked.store.list(f"submissions/{submission}")]
    if len(found) > 1:
        raise BadSubmission(f"expected the beginning of one manifest, got {submission}, which fits {len(found)}")
    if not found:
        raise Denied(f"expected a submission, got {submission}, which nobody submitted; see `vetgate status`")
    return found[0]


def _newest_pass(asked: Request) -> str:
    """The manifest with this name whose newest verdict is the newest PASS; what follows verifies it."""
    found: list[tuple[str, str, str]] = []
    for manifest_sha256 in attested_manifests(asked.store):
        try:
            newest = newest_attestation(asked.store, manifest_sha256)
        except Denied:
            continue  # an altered attestation speaks for no model
        if newest is not None and newest.claims["name"] == asked.name:
            found.append((newest.claims["issued"], manifest_sha256, newest.claims["verdict"]))
    for _, manifest_sha256, verdict in sorted(found, reverse=True):
        if verdict == "PASS":
            return manifest_sha256
    if not found:
        raise Denied(
            f"expected a PASS for {asked.name}, got no verdict; run `vetgate vet` on a submission of that name"
        )
    _, manifest_sha256, verdict = max(found)
    raise Denied(
        f"expected a PASS for {asked.name}, got {verdict} for {manifest_sha256}; repair it, or hand in another"
    )


def _admitted(asked: Request, manifest_sha256: str, room: Path) -> tuple[Manifest, Attestation, dict[str, str]]:
    """The manifest of the quarantined bytes, fetched to `room`, and the attestation that lets them through."""
    newest = newest_attestation(asked.store, manifest_sha256)
    if newest is None:
        raise Denied(f"expected a verdict on {manifest_sha256}, got none; run `vetgate vet` on it")
    manifest = _hashed(fetch_all(asked.store, f"quarantine/{manifest_sha256}", room))
    stated = attest.verify(
        newest.envelope,
        read_trust_root(asked.settings.trust_root),
        name=asked.name,
        files=manifest.digests,
        manifest=manifest.sha256,
        now=asked.now,
        revoked={attest.digest(newest.envelope)} if is_revoked(asked.store, newest.envelope) else (),
    )
    if manifest.sha256 != manifest_sha256:
        raise Denied(f"expected the bytes of {manifest_sha256}, got those of {manifest.sha256}; submit them again")
    if stated["verdict"] != "PASS":
        why = "; ".join(map(str, stated.get("reasons") or ())) or "see its report"
        raise Denied(f"expected a PASS for {manifest_sha256}, got {stated['verdict']}: {why}")
    _under_policy(asked, stated, room)
    tags = {
        "vet.verdict": "PASS",
        "vet.attestation": newest.key,
        "vet.attestation_sha256": attest.digest(newest.envelope),
        "vet.policy_sha256": str(stated["policy"]["sha256"]),
        "vet.issued": str(stated["issued"]),
        "vet.expires": str(stated["expires"]),
    }
    return manifest, newest, tags


def _under_policy(asked: Request, stated: dict[str, Any], directory: Path) -> None:
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


def _copied(store: Store, manifest: Manifest, room: Path, told: Callable[[str], None]) -> Path:
    """The vetted copy of the bytes, in the store and, fetched from there and hashed again, in `room`."""
    home = f"vetted/{manifest.sha256}"
    for entry in manifest.files:
        store.copy_in_file(f"{home}/{entry.path}", room / "quarantine" / entry.path, sha256=entry.sha256)
        told(f"copied {entry.path}")
    vetted = fetch_all(store, home, room / "vetted")
    if _hashed(vetted) != manifest:
        raise Denied(f"expected {home} to hold exactly the vetted bytes, got others; somebody wrote there: remove them")
    told("copy checked")
    return vetted


def _hashed(directory: Path) -> Manifest:
    try:
        return hash_directory(directory, max_bytes=MAX_BYTES, max_files=MAX_FILES)
    except NotUnderstood as error:
        raise Denied(f"expected the plain files that were submitted: {error}") from error

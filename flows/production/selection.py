"""Select: which submission is meant by a name, what was handed in or the hardened copy of it.

A hardened copy is what a trusted vetter signed as the outcome of a repair of another submission. That a submission
calls itself a repair of another says nothing: its supplier may have written it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from flows.production.admission import Admitted, Request
from tasks.records.attestations import taken_back
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.vetting import signed_results
from tasks.vetting.conversion import vetted_in_place_of
from tasks.vetting.intake import Unproven, beginning_with, read_record
from vetgate.errors import BadSubmission, Denied, NotPassed
from vetgate.formats.manifest import Manifest
from vetgate.trust import attest
from vetgate.trust.statements import REPAIR

IDENTITY = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class HardenedCopy:
    """A repaired submission and the one that it is a repair of, each by its manifest."""

    manifest: str
    parent: str


def identified(asked: Request, submission: str) -> str:
    """The manifest that is meant by its SHA-256 or the beginning of it: of what was vetted in place of what came in."""
    manifest = _manifest(asked, submission)
    return vetted_in_place_of(asked.settings, manifest) or manifest


def _manifest(asked: Request, submission: str) -> str:
    if not IDENTITY.fullmatch(submission):
        raise BadSubmission(f"expected the SHA-256 of a manifest, or its beginning, got {submission!r}")
    if len(submission) == 64:
        return submission
    found = beginning_with(asked.store, submission)
    if len(found) > 1:
        raise BadSubmission(f"expected the beginning of one manifest, got {submission}, which fits {len(found)}")
    if not found:
        raise Denied(f"expected a submission, got {submission}, which was never submitted; see `vetgate status`")
    return found[0]


def newest_admitted(asked: Request) -> str:
    """The manifest with this name whose newest verdict is the newest that lets it through; what follows verifies it.

    Of a submission that is let through and its hardened copy, that is the submission.
    """
    state = ledger_state(asked.settings)
    found = state.verdicts_on(asked.name)
    admitted = [manifest for manifest, verdict in found if verdict in attest.ADMITTED]
    for manifest in admitted:
        parent = repaired_from(state, manifest)
        if parent not in admitted or not _stands(state, parent, asked.now):
            return manifest
    if not found:
        raise NotPassed(
            f"expected a PASS for {asked.name}, got no verdict; run `vetgate vet` on a submission of that name"
        )
    manifest_sha256, verdict = found[0]
    raise NotPassed(
        f"expected a PASS for {asked.name}, got {verdict} for {manifest_sha256}; repair it, or hand in another"
    )


def hardened_copy(asked: Request, submission: str | None) -> HardenedCopy:
    """The newest hardened copy that passed in its own right: of any submission of this name, or of this one, or this.

    Where no verdict on one stands it is the newest that passed, and what follows says why that is refused. Raises
    NotPassed where none passed, Denied where there is none.
    """
    state = ledger_state(asked.settings)
    copies: list[tuple[HardenedCopy, str]] = []
    for manifest, verdict in state.verdicts_on(asked.name):
        parent = repaired_from(state, manifest)
        if parent is None or submission not in (None, parent, manifest):
            continue
        copy = HardenedCopy(manifest, parent)
        if verdict == "PASS" and _stands(state, manifest, asked.now):
            return copy
        copies.append((copy, verdict))
    if not copies:
        raise Denied(
            f"expected a hardened copy of {submission or asked.name}, got none: no repair of it was made, or none was "
            "good enough; set `repair.blind: true` in the policy (`repair.enabled` for a model that failed) and vet "
            "it again"
        )
    copy, verdict = next((one for one in copies if one[1] == "PASS"), copies[0])
    check_passed(copy, verdict)
    return copy


def check_passed(copy: HardenedCopy, verdict: str) -> None:
    """Raise NotPassed for a copy that is let through, if at all, by people."""
    if verdict != "PASS":
        raise NotPassed(
            f"expected a hardened copy of {copy.parent} that passed in its own right, got {verdict} for "
            f"{copy.manifest}; see its report, `vetgate report {copy.manifest[:12]}`"
        )


def check_hardened(copy: HardenedCopy, admitted: Admitted) -> None:
    """Raise Denied unless the verdict that lets these bytes through is a PASS on a repair of that very submission."""
    stated = admitted.attestation.claims
    check_passed(copy, stated["verdict"])
    if stated.get("parent") != copy.parent or admitted.manifest.sha256 != copy.manifest:
        raise Denied(
            f"expected a verdict on {copy.manifest} as a repair of {copy.parent}, got one on "
            f"{admitted.manifest.sha256} as a repair of {stated.get('parent')}; vet {copy.parent} again"
        )


def repaired_from(state: LedgerState, manifest: str) -> str | None:
    """The submission of which a trusted vetter signed that a repair gave exactly these bytes; None where none did."""
    try:
        parent = read_record(state.store, manifest).submission.parent
    except (Unproven, BadSubmission):
        return None
    if parent is None:
        return None
    made = signed_results.every(state.store, state.trust, REPAIR, parent)
    return parent if any(Manifest.from_json(one.found["files"]).sha256 == manifest for one in made) else None


def _stands(state: LedgerState, manifest: str, now: datetime) -> bool:
    return state.not_admitted_since(manifest, now) is None and not taken_back(state, manifest)

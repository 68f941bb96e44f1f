"""Revoke: take back a verdict, a waiver or an approval, from now on and for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flows.gate.records import notify_gate
from tasks.records.ledger_entries import statements
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.records.revocations import save_revocation
from tasks.settings import Settings
from tasks.vetting.conversion import canonical_of
from tasks.vetting.intake import beginning_with
from vetgate.errors import BadSubmission, Denied
from vetgate.shape import Blob
from vetgate.trust.keys import APPROVER, GATE, key_id, load_key, read_trust_root, utc_now


def revoke(settings: Settings, what: str, reason: str, key: Path | None = None) -> Blob:
    """Revoke the newest verdict on a submission, or the statement with a digest; either may be given by its beginning.

    With a gate's or approver's key the record tells by whom. Raises Denied for a key that may not.
    """
    if not reason.strip():
        raise BadSubmission("expected a reason for the revocation, got none; say why")
    state = ledger_state(settings)
    kind, digest, manifest = _meant(state, what)
    signing = None if key is None else load_key(key)
    if signing is not None:
        public = read_trust_root(settings.trust_root).key(key_id(signing))
        if public.role not in (GATE, APPROVER) or not public.valid(utc_now()):
            raise Denied(f"expected a gate's or approver's key valid now, got a {public.role}'s; revoke without a key")
    answered = notify_gate(settings, save_revocation(state.store, digest, reason, signing, utc_now()))
    return {
        "revoked": digest,
        "kind": kind,
        "manifest_sha256": manifest,
        "reason": reason,
        "by": None if signing is None else key_id(signing),
        "entry": answered["entry"],
    }


def _meant(state: LedgerState, what: str) -> tuple[str, str, str | None]:
    """Kind, digest and manifest of the one thing that is meant."""
    found = list(dict.fromkeys(_statements(state, what))) if what else []
    undecided = beginning_with(state.store, what) if what and not found else []
    for written in (canonical_of(state.store, state.trust, manifest) for manifest in undecided):
        # what came in has no verdict, but what vetgate wrote in its place
        found += list(_statements(state, written)) if written is not None else []
    if not found and undecided:
        raise Denied(f"expected a verdict on {undecided[0]}, got none; there is nothing to revoke")
    if len(found) != 1:
        raise BadSubmission(
            f"expected a submission, or the digest of one verdict, waiver or approval, or the beginning of either, "
            f"got {what!r}, which fits {len(found)}; `vetgate status` names them"
        )
    return found[0]


def _statements(state: LedgerState, beginning: str) -> Iterator[tuple[str, str, str | None]]:
    for manifest, digest in state.decided(beginning).items():
        yield "verdict", digest, manifest
    for found in statements(state, beginning):
        yield found.kind, found.digest, found.manifest

"""Who submitted a model: statements signed by submitters, each beside the submission under its own digest.

They decide whose approval does not count, so nothing but a verified signature is believed on it; whoever can write to
the store can lay objects beside a statement, and none in its place. The gate enters them before its verdict: one that
is removed after that still names its submitter.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.records.ledger_state import LedgerState
from tasks.store.base import Store
from tasks.vetting.conversion import is_canonical
from tasks.vetting.intake import read_record
from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, Denied
from vetgate.trust import dsse
from vetgate.trust.dsse import Envelope
from vetgate.trust.keys import APPROVER, SUBMITTER, TrustRoot, utc_now
from vetgate.trust.statements import SUBMISSION, claimed, sign_statement, verify_statement
from vetgate.trust.strict_json import as_time, time_text

MOST_ANCESTORS = 64


def sign_submission(manifest_sha256: str, name: str, key: Ed25519PrivateKey) -> Envelope:
    """The submitter's statement that these bytes, under this name, are his."""
    said = {"manifest": manifest_sha256, "name": name, "issued": time_text(utc_now())}
    return sign_statement(SUBMISSION, said, key)


def save_submitter(store: Store, manifest_sha256: str, envelope: Envelope) -> None:
    """Keep a submitter's statement on these bytes, beside those that there are."""
    data = canonical_json(envelope)
    # what is signed can be guessed, the signature cannot: nobody can have this name first
    store.create(f"{_folder(manifest_sha256)}{hashlib.sha256(data).hexdigest()}.json", data)


def read_submitter(trust: TrustRoot, manifest_sha256: str, data: bytes) -> str:
    """The id of the trusted key that signed this very submission; raises Denied for anything else.

    An approver may submit too; a key that ran out since still names him.
    """
    envelope = dsse.read_envelope(data)
    issued = as_time(claimed(SUBMISSION, envelope)["issued"], "issued")
    signed = verify_statement(envelope, trust, SUBMISSION, {SUBMITTER, APPROVER}, issued)
    if signed.predicate.get("manifest") != manifest_sha256:
        raise Denied(f"expected a submitter of {manifest_sha256}, got one of other bytes; remove it")
    return signed.keyid


def signers_of(state: LedgerState, manifest_sha256: str) -> frozenset[str]:
    """The ids of the trusted keys that signed this very submission, those that are entered included."""
    found = set(state.signers(manifest_sha256))
    for key in state.store.list(_folder(manifest_sha256)):
        with suppress(KeyError, Denied):
            found.add(read_submitter(state.trust, manifest_sha256, state.store.read(key)))
    return frozenset(found)


def submitters_of(state: LedgerState, manifest_sha256: str) -> frozenset[str]:
    """The keys that signed this submission and those that it was made of; none when any of them is unsigned.

    One whose submitter is unknown may be an approver's.
    """
    found: set[str] = set()
    manifest: str | None = manifest_sha256
    for _ in range(MOST_ANCESTORS):
        if manifest is None:
            return frozenset(found)
        try:
            record = read_record(state.store, manifest)
            origin, parent = record.submission.submitted, record.submission.parent
        except BadSubmission:
            return frozenset()
        signers = signers_of(state, manifest)
        found |= signers
        # what vetgate wrote is submitted by whoever submitted what it wrote that of
        written = origin is not None and is_canonical(state.store, state.trust, record)
        if not signers and not written:
            return frozenset()
        manifest = origin if written else parent
    return frozenset()


def _folder(manifest_sha256: str) -> str:
    return f"submitters/{manifest_sha256}/"

"""Who submitted a model: a statement signed with the submitter's key, kept once beside the submission.

It decides whose approval does not count, so nothing but a verified signature is believed on it.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.store.base import Store
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


def save_submitter(store: Store, manifest_sha256: str, envelope: Envelope) -> bool:
    """Keep a submitter's statement; False, keeping the first, when these bytes have one."""
    return store.create(_key(manifest_sha256), canonical_json(envelope))


def submitter_of(store: Store, trust: TrustRoot, manifest_sha256: str) -> str | None:
    """The id of the trusted key that signed this submission, None when none did.

    An approver may submit too; a key that ran out since still names him.
    """
    try:
        envelope = dsse.read_envelope(store.read(_key(manifest_sha256)))
        issued = as_time(claimed(SUBMISSION, envelope)["issued"], "issued")
        signed = verify_statement(envelope, trust, SUBMISSION, {SUBMITTER, APPROVER}, issued)
    except (KeyError, Denied):
        return None
    return signed.keyid if signed.predicate.get("manifest") == manifest_sha256 else None


def submitters_of(store: Store, trust: TrustRoot, manifest_sha256: str) -> frozenset[str]:
    """The keys that signed this submission and those that it was repaired from; none when any of them is unsigned.

    One whose submitter is unknown may be an approver's.
    """
    found: set[str] = set()
    manifest: str | None = manifest_sha256
    for _ in range(MOST_ANCESTORS):
        if manifest is None:
            return frozenset(found)
        keyid = submitter_of(store, trust, manifest)
        if keyid is None:
            return frozenset()
        found.add(keyid)
        try:
            manifest = read_record(store, manifest).submission.parent
        except BadSubmission:
            return frozenset()
    return frozenset()


def _key(manifest_sha256: str) -> str:
    return f"submitters/{manifest_sha256}.json"

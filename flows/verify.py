"""Verify: for anybody with the public keys, whether these files are exactly those that a gate let pass."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.intake import MAX_BYTES, MAX_FILES
from vetgate import attest
from vetgate.errors import BadSubmission, Denied, NotUnderstood
from vetgate.formats.manifest import hash_directory
from vetgate.keys import TrustRoot, read_trust_root, utc_now


def verify(
    directory: Path,
    *,
    attestation: Path | attest.Envelope,
    name: str,
    trust_root: Path | TrustRoot,
    now: datetime | None = None,
) -> dict[str, Any]:
    """The verdict's predicate, a PASS in force for exactly these files under this name; raises Denied or Stale.

    Needs nothing but the files, the attestation and the public keys: no store, no registry, no network.
    """
    trust = read_trust_root(trust_root) if isinstance(trust_root, Path) else trust_root
    try:
        envelope = attest.read_envelope(attestation.read_bytes()) if isinstance(attestation, Path) else attestation
    except OSError as error:
        raise BadSubmission(f"expected an attestation at {attestation}, got {error.strerror}; name its file") from error
    try:
        manifest = hash_directory(directory, max_bytes=MAX_BYTES, max_files=MAX_FILES)
    except NotUnderstood as error:
        raise Denied(f"expected exactly the attested files: {error}") from error
    stated = attest.verify(
        envelope, trust, name=name, files=manifest.digests, manifest=manifest.sha256, now=now or utc_now()
    )
    if stated["verdict"] != "PASS":
        raise Denied(f"expected a PASS for {name}, got a signed {stated['verdict']}; do not use this model")
    return stated

"""Verify: for every holder of the public keys, whether these bytes are exactly those that a gate let pass.

Files in a directory need nothing but their attestation and the public keys: no store, no registry, no network. A model
in production is looked up, and its verified bytes can be written out for whatever serves them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.settings import Settings
from tasks.vetting.intake import MAX_BYTES, MAX_FILES
from vetgate.errors import Altered, BadSubmission, NotPassed, NotUnderstood, StoreError, VetgateError
from vetgate.formats.manifest import hash_directory
from vetgate.trust import attest
from vetgate.trust.keys import TrustRoot, read_trust_root, utc_now
from vetgate.trust.named_file import read_named
from vetgate.trust.strict_json import time_text
from vetgate.trust.waivers import waived_until


def verify(
    directory: Path,
    *,
    attestation: Path | attest.Envelope,
    name: str,
    trust_root: Path | TrustRoot,
    now: datetime | None = None,
) -> dict[str, Any]:
    """The verdict's predicate, one that lets exactly these files through under this name and is in force.

    Raises Denied or Stale. What was revoked is known from the trust root only.
    """
    trust = read_trust_root(trust_root) if isinstance(trust_root, Path) else trust_root
    try:
        envelope = attest.read_envelope(read_named(attestation)) if isinstance(attestation, Path) else attestation
    except OSError as error:
        raise BadSubmission(f"expected an attestation at {attestation}, got {error.strerror}; name its file") from error
    try:
        manifest = hash_directory(directory, max_bytes=MAX_BYTES, max_files=MAX_FILES)
    except NotUnderstood as error:
        raise Altered(f"expected exactly the attested files: {error}") from error
    moment = now or utc_now()
    stated = attest.verify(envelope, trust, name=name, files=manifest.digests, manifest=manifest.sha256, now=moment)
    if stated["verdict"] not in attest.ADMITTED:
        raise NotPassed(f"expected a PASS for {name}, got a signed {stated['verdict']}; do not use this model")
    if stated["verdict"] == "WAIVED":
        waived_until(stated, moment, trust.revoked.__contains__)
    return stated


def verify_model(uri: str, settings: Settings, *, output: Path | None = None) -> dict[str, Any]:
    """What covers the model at models:/prod.NAME@ALIAS; its verified bytes go to the new directory `output`.

    Raises as `flows.production.serving.verified_load`.
    """
    from flows.production.serving import deliver

    delivered = deliver(uri, settings)
    if output is not None:
        write_out(delivered.members, output)
    covered = delivered.coverage
    return {
        "model": delivered.target.model,
        "version": delivered.version,
        "alias": delivered.target.alias,
        "name": delivered.target.name,
        "manifest_sha256": covered.manifest,
        "verdict": covered.claims["verdict"],
        "until": time_text(covered.until),
        "grace": covered.grace,
        "files": dict(covered.files),
        "output": None if output is None else str(output),
    }


def write_out(members: Mapping[str, bytes], output: Path) -> None:
    """Write exactly these files, read-only, to the new directory `output`, which is whole once it is there.

    One that holds exactly these files already stays as it is: a container that is started again is no error.
    """
    if _holds(output, members):
        return
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise BadSubmission(f"expected no directory yet at {output}, got one; remove it or name another")
    room = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
        for name, data in members.items():
            _write(room / name, data)
        room.chmod(0o755)
        # fails where another process has put files or a link meanwhile: nothing is written into what others made
        os.rename(room, output)
    except OSError as error:
        raise StoreError(f"expected to write {output}, got {error.strerror}; make room there") from error
    finally:
        if room is not None:
            shutil.rmtree(room, ignore_errors=True)


def _holds(output: Path, members: Mapping[str, bytes]) -> bool:
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    try:
        return not output.is_symlink() and hash_directory(output, max_bytes=MAX_BYTES).digests == expected
    except VetgateError:
        return False


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())

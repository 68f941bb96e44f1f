"""The directory of a guarded model for MLflow's pyfunc flavour: data only, written here, and checked here.

`MLmodel` is one constant text, which names our installed module and nothing else. `data/` holds the vetted files in
`model/`, the attestation, and the file with the guards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.production.verify import verify
from tasks.mlflow.delivery import read_bounded
from tasks.mlflow.guarded import GUARDED
from vetgate.digest import canonical_json
from vetgate.errors import Altered, Denied, OtherName
from vetgate.formats.manifest import MAX_BYTES
from vetgate.trust import attest
from vetgate.trust.guard_claims import guards_in
from vetgate.trust.keys import TrustRoot

MLMODEL = """\
flavors:
  python_function:
    data: data
    loader_module: flows.production.pyfunc
"""
FILE, DATA, MODEL, ATTESTATION, GUARDS = "MLmodel", "data", "model", "attestation.json", "guards.safetensors"
# what MLflow itself writes beside it when it fetches a registered model
META = "registered_model_meta"
MOST_TEXT, MOST_GUARDS = 4 << 20, 257 << 20


@dataclass(frozen=True, eq=False)
class GuardedFiles:
    """Checked bytes: the vetted files by name, the file with the guards, and what the gate said of them."""

    members: dict[str, bytes]
    guards: bytes
    manifest: str
    claims: dict[str, Any]


def write_pyfunc(directory: Path, model: Path, envelope: attest.Envelope, guards: bytes) -> None:
    """Write the new directory with these vetted files, the verdict on them, and the file with their guards.

    The same bytes each time. Raises OSError.
    """
    (directory / DATA).mkdir(parents=True)
    (directory / FILE).write_text(MLMODEL)
    shutil.copytree(model, directory / DATA / MODEL)
    (directory / DATA / ATTESTATION).write_bytes(canonical_json(envelope))
    (directory / DATA / GUARDS).write_bytes(guards)


def check_pyfunc(directory: Path, trust: TrustRoot) -> GuardedFiles:
    """The bytes in such a directory, if a gate of this trust root let exactly them pass; nothing of it is loaded.

    The attestation is checked first: name, files, manifest, expiry, and then the digest of the guards. Raises Denied
    for a directory that holds anything else than `write_pyfunc` writes, or an `MLmodel` that names code, a
    python_model, another loader or whatever else ours does not; and as `flows.production.verify.verify`.
    """
    _only(directory, {FILE, DATA}, {META})
    _only(directory / DATA, {MODEL, ATTESTATION, GUARDS})
    home = directory / DATA
    envelope = attest.read_envelope(_read(home / ATTESTATION, MOST_TEXT))
    name = str(attest.claims(envelope)["name"])
    claims = verify(home / MODEL, attestation=envelope, name=name, trust_root=trust)
    if _read(directory / FILE, MOST_TEXT) != MLMODEL.encode():
        raise Denied(
            f"expected the {FILE} that vetgate writes, got another, which could name code, a python_model or another "
            "loader; do not load it, and promote the model again"
        )
    _same_name(directory, name)
    manifest, stated = attest.manifest_of(envelope), guards_in(claims)
    if stated is None:
        raise Denied(f"expected an attestation of {manifest} that names guards, got one without; vet it again")
    files = attest.files_of(envelope)
    return GuardedFiles(
        {name: _read(home / MODEL / name, MAX_BYTES, sha256) for name, sha256 in files.items()},
        _read(home / GUARDS, MOST_GUARDS, stated.package),
        manifest,
        claims,
    )


def _only(folder: Path, names: set[str], may: frozenset[str] | set[str] = frozenset()) -> None:
    try:
        found = set(os.listdir(folder))
    except OSError as error:
        raise Altered(f"expected a guarded model at {folder}, got {error.strerror}; promote it again") from error
    if not names <= found <= names | may:
        wrong, wanted = ", ".join(sorted((found - may) ^ names)), ", ".join(sorted(names))
        raise Altered(f"expected exactly {wanted} in {folder.name}, got more or less: {wrong:.300}; promote it again")


def _read(path: Path, most: int, sha256: str | None = None) -> bytes:
    try:
        data = read_bounded(path, most)
    except OSError as error:
        raise Altered(f"expected to read {path.name}, got {error.strerror}; promote the model again") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise Altered(f"expected exactly the attested {path.name}, got other bytes; promote the model again")
    return data


def _same_name(directory: Path, name: str) -> None:
    """Raise OtherName where MLflow was asked for another registered model than that of this name."""
    if not (directory / META).exists():
        return
    try:
        asked = yaml.safe_load(_read(directory / META, MOST_TEXT))["model_name"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise Altered(f"expected what MLflow writes in {META}, got {error!s:.200}; fetch the model again") from error
    if asked != f"{GUARDED}{name}":
        raise OtherName(f"expected an attestation for {asked!r:.200}, got one for {GUARDED}{name}; load that")

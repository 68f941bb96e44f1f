"""Private keys, in files that only their owner can read: a gate's and a vetter's, made on first use, and people's."""

from __future__ import annotations

import hashlib
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, Denied, StoreError
from vetgate.trust.named_file import read_named, read_with_mode
from vetgate.trust.root import (
    APPROVER,
    GATE,
    ROLES,
    SUBMITTER,
    VETTER,
    PublicKey,
    TrustRoot,
    read_trust_root,
    trust_key,
)

__all__ = [
    "APPROVER",
    "GATE",
    "KEY_LIFETIME",
    "ROLES",
    "SUBMITTER",
    "VETTER",
    "PublicKey",
    "TrustRoot",
    "key_id",
    "load_key",
    "load_or_create_key",
    "load_or_create_vetter",
    "new_key",
    "raw_public",
    "read_public",
    "read_trust_root",
    "trust_key",
    "utc_now",
]

KEY_LIFETIME = timedelta(days=5 * 365)


def load_or_create_key(path: Path, trust_root: Path, *, now: datetime) -> Ed25519PrivateKey:
    """The gate's private key, made with mode 0600 on first use; a trust root that holds it is made if there is none.

    Raises Denied for a key file that others could have read or that holds no Ed25519 key.
    """
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _create(path, pem, 0o600)
    key = load_key(path)
    if not trust_root.exists():
        public = PublicKey(raw_public(key), GATE, now.replace(microsecond=0), now.replace(microsecond=0) + KEY_LIFETIME)
        _create(trust_root, canonical_json(TrustRoot((public,)).to_json()), 0o644)
    return key


def load_or_create_vetter(path: Path, trust_root: Path, *, now: datetime) -> Ed25519PrivateKey:
    """The private key that evidence is signed with, made with mode 0600 on first use and then added to the trust root.

    One that is there is not trusted anew: who took it out of the trust root meant it. Raises Denied, as a gate's does.
    """
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        # trusted first: a crash in between leaves a key without an owner, and not an owner whom nobody believes
        trust_key(trust_root, raw_public(key), VETTER, now=now, valid=KEY_LIFETIME)
        _create(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    return load_key(path)


def new_key(path: Path) -> Ed25519PrivateKey:
    """A new private key in a new file of mode 0600, its public half beside it in `<path>.pub`; raises BadSubmission."""
    if path.exists():
        raise BadSubmission(f"expected a new file for the key, got {path}, which is there; name another")
    key = Ed25519PrivateKey.generate()
    _create(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    if raw_public(made := load_key(path)) != raw_public(key):
        raise BadSubmission(f"expected a new file for the key, got {path}, which was written meanwhile; name another")
    public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _create(path.with_name(f"{path.name}.pub"), public, 0o644)
    return made


def read_public(path: Path) -> bytes:
    """The raw public key in a PEM file; raises BadSubmission when it holds none of Ed25519."""
    try:
        key = load_pem_public_key(read_named(path))
    except OSError as error:
        raise BadSubmission(f"expected a public key at {path}, got {error.strerror}; name its file") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadSubmission(
            f"expected a public key in PEM in {path}, got something else; name the .pub file"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadSubmission(f"expected an Ed25519 key in {path}, got another kind; make one with `vetgate keys new`")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def raw_public(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_id(key: Ed25519PrivateKey) -> str:
    """SHA-256 in hex of the raw public half."""
    return hashlib.sha256(raw_public(key)).hexdigest()


def load_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a file; raises Denied for one that others could have read or that holds no Ed25519 key."""
    try:
        pem, mode = read_with_mode(path)
    except OSError as error:
        raise StoreError(f"expected to read the key {path}, got {error.strerror}; check the file") from error
    if mode & 0o077:
        raise Denied(
            f"expected {path} to be readable by its owner only, got mode {mode:o}; make a new key, it may be known"
        )
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise Denied(f"expected an unencrypted PEM private key in {path}, got something else; restore it") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Denied(f"expected an Ed25519 key in {path}, got another kind; restore it")
    return key


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a new file whole; when another process is first, its file stays."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp opens with O_EXCL and 0600; the link fails if the name is taken and never shows half a file
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.link(name, path)
        except FileExistsError:
            return
        finally:
            os.unlink(name)
    except OSError as error:
        raise StoreError(f"expected to write {path}, got {error.strerror}; check the disk and its mode") from error


def utc_now() -> datetime:
    """This moment, with its time zone."""
    return datetime.now(UTC)

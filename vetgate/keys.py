"""The keys of the gate: one private key of this machine, and the public keys whose signatures are believed.

The trust root is a JSON file that anybody may hold. Each of its keys has an id (the SHA-256 of the raw public key), a
role and a window of validity; the file may also name statements that were revoked.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from vetgate.digest import canonical_json
from vetgate.errors import Denied, StoreError
from vetgate.strict_json import as_base64, as_list, as_object, as_sha256, as_text, as_time, parse, time_text

GATE = "gate"
KEY_LIFETIME = timedelta(days=5 * 365)


@dataclass(frozen=True)
class PublicKey:
    """One key of the trust root; it counts from `not_before` until `not_after`."""

    raw: bytes
    role: str
    not_before: datetime
    not_after: datetime

    @property
    def id(self) -> str:
        """SHA-256 in hex of the raw public key."""
        return hashlib.sha256(self.raw).hexdigest()

    def valid(self, at: datetime) -> bool:
        """Whether the moment lies in the key's window."""
        return self.not_before <= at < self.not_after

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Whether this key made the signature."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def to_json(self) -> dict[str, Any]:
        """A JSON object as it stands in the trust root."""
        return {
            "keyid": self.id,
            "public_key": base64.b64encode(self.raw).decode(),
            "role": self.role,
            "not_before": time_text(self.not_before),
            "not_after": time_text(self.not_after),
        }

    @classmethod
    def from_json(cls, blob: Any) -> PublicKey:
        """The key that `to_json` wrote; raises Denied."""
        fields = as_object(blob, {"keyid", "public_key", "role", "not_before", "not_after"}, "a key")
        raw = as_base64(fields["public_key"], "public_key")
        not_before, not_after = as_time(fields["not_before"], "not_before"), as_time(fields["not_after"], "not_after")
        if len(raw) != 32:
            raise Denied(f"expected an Ed25519 public key of 32 bytes, got {len(raw)}; correct the trust root")
        key = cls(raw, as_text(fields["role"], "role"), not_before, not_after)
        if fields["keyid"] != key.id:
            raise Denied(f"expected keyid {key.id}, got {fields['keyid']!r}; correct the trust root")
        return key


@dataclass(frozen=True)
class TrustRoot:
    """The public keys that are believed, and the digests of the statements that are no longer."""

    keys: tuple[PublicKey, ...]
    revoked: frozenset[str] = frozenset()

    def key(self, keyid: str) -> PublicKey:
        """The key with this id; raises Denied when it is not among the trusted."""
        for key in self.keys:
            if key.id == keyid:
                return key
        raise Denied(f"expected a signature by a key of the trust root, got key {keyid!r}; trust it, or vet again")

    def to_json(self) -> dict[str, Any]:
        """The content of a trust root file."""
        return {"keys": [key.to_json() for key in self.keys], "revoked": sorted(self.revoked)}

    @classmethod
    def from_json(cls, blob: Any) -> TrustRoot:
        """The trust root that `to_json` wrote; raises Denied."""
        fields = as_object(blob, {"keys", "revoked"}, "a trust root")
        keys = tuple(PublicKey.from_json(key) for key in as_list(fields["keys"], "keys"))
        if len({key.id for key in keys}) != len(keys):
            raise Denied("expected each key once in the trust root, got one twice; remove it")
        return cls(keys, frozenset(as_sha256(digest, "revoked") for digest in as_list(fields["revoked"], "revoked")))


def read_trust_root(path: Path) -> TrustRoot:
    """The trust root in a file; raises Denied, because without one nothing can be believed."""
    try:
        return TrustRoot.from_json(parse(path.read_bytes(), "trust root"))
    except OSError as error:
        raise Denied(f"expected a trust root at {path}, got {error.strerror}; set VETGATE_TRUST_ROOT") from error


def load_or_create_key(path: Path, trust_root: Path, *, now: datetime) -> Ed25519PrivateKey:
    """The gate's private key, made with mode 0600 on first use; a trust root that holds it is made if there is none.

    Raises Denied for a key file that others could have read or that holds no Ed25519 key.
    """
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _create(path, pem, 0o600)
    key = _load(path)
    if not trust_root.exists():
        public = PublicKey(raw_public(key), GATE, now.replace(microsecond=0), now.replace(microsecond=0) + KEY_LIFETIME)
        _create(trust_root, canonical_json(TrustRoot((public,)).to_json()), 0o644)
    return key


def raw_public(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            pem = file.read()
    except OSError as error:
        raise StoreError(f"expected to read the gate's key {path}, got {error.strerror}; check the file") from error
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
    """Write a new file whole; when somebody else is first, theirs stays."""
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

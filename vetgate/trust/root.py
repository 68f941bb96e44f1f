"""The trust root: the public keys whose signatures are believed, each with a role and a window of validity.

It is a JSON file with nothing secret in it. A key's id is the SHA-256 of the raw public key; the file may also name
statements that were revoked.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vetgate.digest import canonical_json
from vetgate.errors import BadSignature, BadSubmission, Denied, StoreError
from vetgate.trust.named_file import read_named
from vetgate.trust.strict_json import as_base64, as_list, as_object, as_sha256, as_text, as_time, parse, time_text

GATE, APPROVER, SUBMITTER, VETTER = ROLES = ("gate", "approver", "submitter", "vetter")


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
            raise BadSignature(f"expected an Ed25519 public key of 32 bytes, got {len(raw)}; correct the trust root")
        key = cls(raw, as_text(fields["role"], "role"), not_before, not_after)
        if fields["keyid"] != key.id:
            raise BadSignature(f"expected keyid {key.id}, got {fields['keyid']!r}; correct the trust root")
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
        raise BadSignature(
            f"expected a signature by a key of the trust root, got key {keyid!r}; trust it, or vet again"
        )

    def to_json(self) -> dict[str, Any]:
        """The content of a trust root file."""
        return {"keys": [key.to_json() for key in self.keys], "revoked": sorted(self.revoked)}

    @classmethod
    def from_json(cls, blob: Any) -> TrustRoot:
        """The trust root that `to_json` wrote; raises Denied."""
        fields = as_object(blob, {"keys", "revoked"}, "a trust root")
        keys = tuple(PublicKey.from_json(key) for key in as_list(fields["keys"], "keys"))
        if len({key.id for key in keys}) != len(keys):
            raise BadSignature("expected each key once in the trust root, got one twice; remove it")
        return cls(keys, frozenset(as_sha256(digest, "revoked") for digest in as_list(fields["revoked"], "revoked")))


def read_trust_root(path: Path) -> TrustRoot:
    """The trust root in a file; raises Denied, because without one nothing can be believed."""
    try:
        return TrustRoot.from_json(parse(read_named(path), "trust root"))
    except Denied as error:
        raise BadSignature(str(error)) from error
    except OSError as error:
        raise BadSignature(f"expected a trust root at {path}, got {error.strerror}; set VETGATE_TRUST_ROOT") from error


def trust_key(path: Path, raw: bytes, role: str, *, now: datetime, valid: timedelta) -> PublicKey:
    """Add a public key to the trust root in a file, or give the one that is there this window; raises Denied.

    A key keeps the role that it has: an approver must not become a gate by a second line.
    """
    if role not in ROLES:
        raise BadSubmission(f"expected one of the roles {', '.join(ROLES)}, got {role!r}")
    key = PublicKey(raw, role, now.replace(microsecond=0), now.replace(microsecond=0) + valid)
    with _locked(path):
        trust = read_trust_root(path)
        held = {known.id: known for known in trust.keys}
        if key.id in held and held[key.id].role != role:
            raise Denied(f"expected key {key.id} as {held[key.id].role}, got {role}; make another key for that role")
        if key.id in held:
            # what it signed before stays signed
            key = PublicKey(raw, role, held[key.id].not_before, key.not_after)
        _replace(path, canonical_json(TrustRoot((*({**held, key.id: key}).values(),), trust.revoked).to_json()))
    return key


def _replace(path: Path, data: bytes) -> None:
    """Give a file other content whole; a reader meanwhile sees the old or the new."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as error:
        raise StoreError(f"expected to write {path}, got {error.strerror}; check the disk and its mode") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        lock = path.with_name(f".{path.name}.lock").open("wb")
    except OSError as error:
        raise StoreError(f"expected to write in {path.parent}, got {error.strerror}; check its mode") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

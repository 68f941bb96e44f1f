"""Keys: make one for a person, have its public half trusted in a role for some days, list what is trusted."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from tasks.settings import Settings
from vetgate.errors import BadSubmission
from vetgate.shape import Blob
from vetgate.trust.keys import (
    ROLES,
    PublicKey,
    load_or_create_key,
    new_key,
    raw_public,
    read_public,
    read_trust_root,
    trust_key,
    utc_now,
)


def new(settings: Settings, path: Path, role: str, days: int) -> Blob:
    """Make a private key in a new file, 0600, with its public half in FILE.pub, and trust it in this role."""
    _check(settings, role, days)
    made = raw_public(new_key(path))
    return {"file": str(path), "public": f"{path}.pub", **_trusted(settings, made, role, days)}


def trust(settings: Settings, path: Path, role: str, days: int) -> Blob:
    """Trust the public key in a file in this role; one that is trusted already gets the new end."""
    _check(settings, role, days)
    return _trusted(settings, read_public(path), role, days)


def listed(settings: Settings) -> list[Blob]:
    """Every trusted key: id, role, window, and whether it is valid now."""
    return [_shown(key) for key in read_trust_root(settings.trust_root).keys]


def _check(settings: Settings, role: str, days: int) -> None:
    if role not in ROLES or days < 1:
        raise BadSubmission(f"expected one of the roles {', '.join(ROLES)} for 1 day or more, got {role!r} for {days}")
    if settings.trust_root.exists():
        return
    if settings.gate_url is not None:
        raise BadSubmission(f"expected the gate's trust root at {settings.trust_root}, got none; copy it here first")
    # a trust root without the gate's own key would have it refuse everything
    load_or_create_key(settings.gate_key, settings.trust_root, now=utc_now())


def _trusted(settings: Settings, raw: bytes, role: str, days: int) -> Blob:
    return _shown(trust_key(settings.trust_root, raw, role, now=utc_now(), valid=timedelta(days=days)))


def _shown(key: PublicKey) -> Blob:
    fields = key.to_json()
    del fields["public_key"]
    return {**fields, "valid": key.valid(utc_now())}

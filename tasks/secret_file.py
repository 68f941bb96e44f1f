"""Secrets of the installation, each a line in a file of mode 0600 that the first process to need it makes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vetgate.errors import StoreError
from vetgate.trust.named_file import read_named

MIN_LENGTH = 16


def secret_at(path: Path, make: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> str:
    """The secret in a file, made on first use; raises StoreError, which names the file and never what is in it."""
    try:
        return secret_bytes_at(path, make).decode("ascii")
    except UnicodeDecodeError:
        raise StoreError(f"expected a line of text at {path}, got other bytes; remove the file") from None


def secret_bytes_at(path: Path, make: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> bytes:
    """As `secret_at`, of whatever bytes."""
    try:
        if not path.exists():
            _create(path, make())
        found = read_named(path).strip()
    except OSError as error:
        why = error.strerror
        raise StoreError(f"expected a secret at {path}, got {why}; give this user the right to it") from None
    if len(found) < MIN_LENGTH:
        raise StoreError(f"expected at least {MIN_LENGTH} characters in {path}, got {len(found)}; remove the file")
    return found


def _create(path: Path, secret: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(secret)
            handle.flush()
            os.fsync(handle.fileno())
        # a link, not a rename: the first of several processes wins, and all of them read the same
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)

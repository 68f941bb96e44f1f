"""Directories that are made once for a key and then kept: whole or absent, and made anew when a byte has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vetgate.digest import sha256_json
from vetgate.errors import StoreError

METADATA = "metadata.json"


def cached(parent: Path, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Path:
    """The directory that `make` filled for this key, now or earlier; METADATA in it holds the key and what it returned.

    The first process gives it its name, which is the SHA-256 of the key.
    """
    place = parent / sha256_json(dict(key))
    if _sound(place):
        return place
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=parent) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            contents = make(made)
            files = {path.name: _sha256(path) for path in sorted(made.iterdir())}
            (made / METADATA).write_text(json.dumps({**key, **contents, "files": files}, indent=2) + "\n")
            for path in made.iterdir():
                path.chmod(0o444)
            if place.exists() and not _sound(place):
                os.rename(place, Path(scratch, "broken"))
            try:
                os.rename(made, place)
            except OSError:
                if not _sound(place):
                    raise
    except OSError as error:
        raise StoreError(f"expected to write under {parent}, got {error}; free or mount the disk") from error
    return place


def copied(place: Path, out: Path | None) -> Path:
    """The kept directory itself, or a copy of its files in `out`."""
    if out is None:
        return place
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in place.iterdir():
            # a copy, not a link: what is handed out may be written to, what is kept may not
            shutil.copyfile(path, out / path.name)
    except OSError as error:
        raise StoreError(f"expected to write to {out}, got {error}; free or mount the disk") from error
    return out


def _sound(place: Path) -> bool:
    try:
        files = json.loads((place / METADATA).read_text())["files"]
        return all(_sha256(place / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

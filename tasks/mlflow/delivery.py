"""The bytes of a version in production, read once: what was hashed is what is handed on, never a path to it.

What the registry says is only where to look; which bytes must be there the gate has signed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasks.mlflow.aliases import PREFIX, version_of
from tasks.mlflow.answers import text
from tasks.mlflow.artifacts import fetch_place, place_of
from tasks.mlflow.client import registry
from tasks.mlflow.listing import model_at
from tasks.mlflow.promoted import MODEL
from tasks.records.coverage import Coverage
from tasks.settings import Settings
from tasks.store.base import check_files, fetch_files
from tasks.store.open import open_store
from tasks.vetting.intake import MAX_BYTES, workroom
from vetgate.errors import Altered, Denied, StoreError
from vetgate.formats.manifest import FILE_NAME

OTHER = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}


def registered_version(settings: Settings, model: str, alias: str | None, number: str | None) -> tuple[str, str]:
    """The version and its place, as the registry says; nothing of it is believed yet."""
    with registry(settings) as client:
        known = None if alias is None else model_at(client, model)
        wanted = number if known is None else known.aliases.get(alias)
        found = None if wanted is None else version_of(client, model.removeprefix(PREFIX), text(wanted))
    if found is not None:
        return found.version, found.place
    what = f"version {number}" if alias is None else f"alias {alias}"
    raise Denied(f"expected {model} to have {what}, got none; promote a model that passed, or name another")


def attested_bytes(settings: Settings, coverage: Coverage) -> dict[str, bytes]:
    """The attested bytes, from where the promoted version's source points to; the vetted copy must hold them too."""
    store, home, source = open_store(settings), f"vetted/{coverage.manifest}", coverage.promotion.source
    with workroom(settings) as room:
        vetted = _local(store.url(home))
        if vetted is None:
            check_files(store, home, coverage.files)
            vetted = fetch_files(store, home, room / "vetted", coverage.files, most=MAX_BYTES)
        members = _read_once(vetted, coverage)
        if source != store.url(home):
            # a registry that may not point into a directory store keeps a copy; that one is what others load
            members = _read_once(_local(source) or _from_run(settings, coverage, room / "run"), coverage)
    return members


def _local(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _from_run(settings: Settings, coverage: Coverage, room: Path) -> Path:
    source = coverage.promotion.source
    with registry(settings) as client:
        if source != f"{place_of(client, coverage.promotion.run_id)}/{MODEL}":
            raise Denied(f"expected a source in the vetted store or in its own run, got {source!r:.300}; promote again")
        return fetch_place(settings, source, room, coverage.files)


def _read_once(folder: Path, coverage: Coverage) -> dict[str, bytes]:
    """The attested files in a folder by their names, as they were when each was read, the one time it was."""
    members: dict[str, bytes] = {}
    left = MAX_BYTES
    try:
        _same_names(set(os.listdir(folder)), coverage)
        for name, sha256 in sorted(coverage.files.items()):
            data = read_bounded(folder / name, left)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise Altered(f"expected exactly the attested files, got changed: {name}; restore the vetted bytes")
            members[name] = data
            left -= len(data)
    except OSError as error:
        if error.errno in OTHER:
            raise Altered(f"expected exactly the attested files, got {error}; restore the vetted bytes") from error
        raise StoreError(f"expected to read {folder}, got {error.strerror}; check the disk") from error
    return members


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a plain file of at most `limit` bytes; raises Denied for any other, OSError if it is not there."""
    with open(path, "rb", opener=_without_detour) as file:
        status = os.fstat(file.fileno())
        # the size first: what was put there must not fill the memory
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            got = f"{status.st_size} bytes in {path.name}"
            raise Altered(f"expected exactly the attested files, got {got}; restore the vetted bytes")
        return file.read(status.st_size)


def _without_detour(path: str, flags: int) -> int:
    # neither a link to follow nor a pipe to wait for
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _same_names(found: set[str], coverage: Coverage) -> None:
    wrong = sorted(found ^ set(coverage.files)) + [name for name in coverage.files if not FILE_NAME.fullmatch(name)]
    if wrong:
        raise Altered(
            f"expected exactly the attested files, got others: {', '.join(wrong)[:300]}; restore the vetted bytes"
        )

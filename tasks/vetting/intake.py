"""Copy a submission in, keep it under its manifest, and hand a vetting its own checked copy."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.errors import BadSubmission, StoreError
from vetgate.formats.manifest import Manifest, hash_directory, take_in
from vetgate.formats.submission import Submission, read_submission

MAX_BYTES = 2 * 2**30
MAX_FILES = 64


@dataclass(frozen=True)
class Record:
    """One submission as the store keeps it; written once, by the first to submit these bytes."""

    submission: Submission
    manifest: Manifest
    submitted_at: str
    seed: int

    @property
    def id(self) -> str:
        """The SHA-256 of the manifest."""
        return self.manifest.sha256

    def seed_for(self, run: str = "") -> int:
        """The seed of the first run (""), or of another, independent one by its name."""
        if not run:
            return self.seed
        digest = hmac.digest(str(self.seed).encode(), f"{self.id}/{run}".encode(), "sha256")
        return int.from_bytes(digest[:8], "big") >> 11

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {
            "submission": self.submission.model_dump(mode="json"),
            "manifest": self.manifest.to_json(),
            "manifest_sha256": self.id,
            "submitted_at": self.submitted_at,
            "seed": self.seed,
            "parent": self.submission.parent,
        }

    @classmethod
    def from_json(cls, blob: dict[str, Any]) -> Record:
        """The record that `to_json` wrote."""
        return cls(
            submission=Submission.model_validate(blob["submission"]),
            manifest=Manifest.from_json(blob["manifest"]),
            submitted_at=str(blob["submitted_at"]),
            seed=int(blob["seed"]),
        )


def take(
    settings: Settings,
    directory: Path,
    *,
    name: str | None = None,
    seed: int | None = None,
    check_name: Callable[[str], None] = lambda name: None,
) -> Record:
    """Copy a submission directory into quarantine and record it; the same bytes give the same record.

    `seed` is that of its detectors where a supplier has no say in it: of a demonstration, or of our own repair, which
    has it from its parent. Raises BadSubmission when it is not a submission of `name`, if one is given, and whatever
    `check_name` raises, before anything is kept.
    """
    if not directory.is_dir():
        raise BadSubmission(f"expected a directory with submission.yaml and a model, got {directory}")
    with workroom(settings) as room:
        copy = room / "copy"
        manifest = take_in(directory, copy, max_bytes=MAX_BYTES, max_files=MAX_FILES)
        submission = read_submission(copy)
        if name not in (None, submission.name):
            raise BadSubmission(f"expected a submission of {name}, got one of {submission.name}; correct its name")
        check_name(submission.name)
        store = open_store(settings)
        for entry in manifest.files:
            store.copy_in_file(f"quarantine/{manifest.sha256}/{entry.path}", copy / entry.path)
    own = _seed(settings, manifest) if seed is None else seed
    record = Record(submission, manifest, datetime.now(UTC).isoformat(timespec="seconds"), own)
    # last, so that a recorded submission has all its files
    if store.create(f"submissions/{record.id}.json", json.dumps(record.to_json(), sort_keys=True).encode()):
        return record
    return read_record(store, record.id)


def read_record(store: Store, manifest_sha256: str) -> Record:
    """The recorded submission; raises BadSubmission when there is none."""
    try:
        return Record.from_json(json.loads(store.read(f"submissions/{manifest_sha256}.json")))
    except KeyError as error:
        raise BadSubmission(f"expected a submitted model, got {manifest_sha256}; see `vetgate status`") from error


def find_record(store: Store, prefix: str) -> Record:
    """The one recorded submission whose manifest's SHA-256 begins so; raises BadSubmission otherwise."""
    found = [manifest for manifest in submitted(store) if manifest.startswith(prefix)]
    if len(found) != 1:
        raise BadSubmission(
            f"expected the SHA-256 of one submission, or its beginning, got {prefix!r} which fits {len(found)}; "
            "see `vetgate status`"
        )
    return read_record(store, found[0])


def submitted(store: Store) -> list[str]:
    """The manifests of every recorded submission, by their names alone."""
    return [key.split("/")[1].removesuffix(".json") for key in store.list("submissions/") if key.endswith(".json")]


def records(store: Store) -> list[Record]:
    """Every recorded submission, oldest first."""
    return sorted((read_record(store, manifest) for manifest in submitted(store)), key=lambda r: (r.submitted_at, r.id))


def fetch(store: Store, record: Record, destination: Path) -> None:
    """Copy a submission's files out of quarantine; raises StoreError unless they are the bytes recorded."""
    destination.mkdir(mode=0o700)
    for entry in record.manifest.files:
        path = destination / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.fetch(f"quarantine/{record.id}/{entry.path}", path)
        except KeyError as error:
            raise StoreError(f"quarantine/{record.id} lacks {entry.path}; submit the model again") from error
    if hash_directory(destination).sha256 != record.id:
        raise StoreError(f"the bytes in quarantine/{record.id} are not those submitted; the store was tampered with")


@contextmanager
def workroom(settings: Settings) -> Iterator[Path]:
    """A private directory for one piece of work, gone afterwards, also after a kill at the next call."""
    where = settings.home / "work"
    try:
        where.mkdir(parents=True, exist_ok=True)
        with (where / ".lock").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            _sweep(where)
            room = Path(tempfile.mkdtemp(dir=where))
            held = (room / ".lock").open("w")
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        raise StoreError(
            f"expected to write in {where}, got {error.strerror}; set VETGATE_HOME or free space"
        ) from error
    try:
        yield room
    finally:
        _remove(room)
        held.close()


def _sweep(where: Path) -> None:
    for room in where.iterdir():
        if not room.is_dir():
            continue
        # a process that works there holds its lock; one that can be taken belongs to a process that died
        with suppress(OSError), (room / ".lock").open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(room)


def _remove(room: Path) -> None:
    for path, _, _ in os.walk(room):
        with suppress(OSError):
            os.chmod(path, 0o700)
    shutil.rmtree(room, ignore_errors=True)


def _seed(settings: Settings, manifest: Manifest) -> int:
    """Stable for resuming, unknown to the supplier; 53 bits, which every JSON reader holds exactly."""
    digest = hmac.digest(
        _installation_secret(settings.home / "keys" / "seed.secret"), manifest.sha256.encode(), "sha256"
    )
    return int.from_bytes(digest[:8], "big") >> 11


def _installation_secret(path: Path) -> bytes:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(hashlib.sha256(secrets.token_bytes(64)).digest())
            handle.flush()
            os.fsync(handle.fileno())
        # a link, not a rename: the first of two installers wins
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"expected to keep a secret at {path}, got {error.strerror}; set VETGATE_HOME") from error

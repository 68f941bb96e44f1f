"""Copy a submission in, keep it under its manifest, and hand a vetting its own checked copy."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.secret_file import secret_bytes_at
from tasks.settings import Settings
from tasks.store.base import Changed, Store, fetch_files
from tasks.store.open import open_store
from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, Denied, NotUnderstood, StoreError
from vetgate.formats.manifest import Manifest, hash_directory, take_in
from vetgate.formats.submission import FILE, Submission, parse_submission, read_description
from vetgate.trust.dsse import MAX_CLOCK_SKEW
from vetgate.trust.seeds import Seed, Seeds
from vetgate.trust.strict_json import as_object

logger = logging.getLogger(__name__)
MAX_BYTES = 2 * 2**30
MAX_FILES = 64


class Unproven(StoreError):
    """What lies at the place of a submission's record does not follow from the submitted bytes."""

    code = "unproven-record"


@dataclass(frozen=True)
class Record:
    """One submission as the store keeps it, written by the first to submit these bytes; it proves itself.

    `description` is the text of submission.yaml, whose SHA-256 is in the manifest, whose SHA-256 is the submission's
    id. When it was submitted is what intake says, and nothing is decided by it but an order. Seeds are drawn from
    `origin`, if this installation made its `seal`.
    """

    description: str
    manifest: Manifest
    submitted_at: str
    origin: str = ""
    seal: str = ""

    @property
    def id(self) -> str:
        """The SHA-256 of the manifest."""
        return self.manifest.sha256

    @property
    def submission(self) -> Submission:
        """What the supplier says, read from the description; raises BadSubmission where this version refuses it."""
        return _parsed(self.description)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {**asdict(self), "manifest": self.manifest.to_json()}

    @classmethod
    def from_json(cls, blob: object, manifest_sha256: str) -> Record:
        """The record that `to_json` wrote of this manifest; raises Unproven for what does not follow from it."""
        try:
            fields = as_object(blob, {field.name for field in dataclass_fields(cls)}, "a record")
            manifest = Manifest.from_json(fields.pop("manifest"))
            if not all(isinstance(value, str) for value in fields.values()):
                raise Denied("expected texts in a record, got something else")
            described = {hashlib.sha256(fields["description"].encode()).hexdigest()}
            if manifest.sha256 != manifest_sha256 or {manifest.digests.get(FILE)} != described:
                raise Denied("expected the manifest and the description of these bytes, got others")
            submitted = datetime.fromisoformat(fields["submitted_at"])
            # one of next year would stand last in every queue, and records are put in order by the text
            if submitted > datetime.now(UTC) + MAX_CLOCK_SKEW or _time(submitted) != fields["submitted_at"]:
                raise Denied(f"expected a time of submission that has been, got {fields['submitted_at']!r:.80}")
        except (Denied, StoreError, TypeError, ValueError, OverflowError) as error:
            raise Unproven(
                f"expected submissions/{manifest_sha256}.json to follow from the submitted bytes, got something else "
                f"({error}); remove it and submit the model again"
            ) from error
        return cls(manifest=manifest, **fields)


_parsed = lru_cache(maxsize=1024)(parse_submission)


def take(
    settings: Settings,
    directory: Path,
    *,
    name: str | None = None,
    origin: str = "",
    submitted_at: str | None = None,
    check_name: Callable[[str], None] = lambda name: None,
) -> Record:
    """Copy a submission directory into quarantine and record it; the same bytes give the same record.

    `origin` is what the seeds of its detectors are drawn from, if not the manifest (`vetgate.trust.seeds`); to seal it
    takes the installation's secret. `submitted_at` is that of an earlier submission where vetgate writes it anew. What
    lies in the record's place and does not follow from the bytes is replaced. Raises BadSubmission when it is no
    submission of `name`, if one is given, what `check_name` raises, before anything is kept, and Unproven where nothing
    can be replaced.
    """
    if not directory.is_dir():
        raise BadSubmission(f"expected a directory with submission.yaml and a model, got {directory}")
    with workroom(settings) as room:
        copy = room / "copy"
        manifest = take_in(directory, copy, max_bytes=MAX_BYTES, max_files=MAX_FILES)
        description = read_description(copy, given=directory)
        submission = parse_submission(description)
        if name not in (None, submission.name):
            raise BadSubmission(f"expected a submission of {name}, got one of {submission.name}; correct its name")
        check_name(submission.name)
        store = open_store(settings)
        for entry in manifest.files:
            store.copy_in_file(f"quarantine/{manifest.sha256}/{entry.path}", copy / entry.path)
    seal = seeds_of(settings).seal(manifest.sha256, origin) if origin else ""
    record = Record(description, manifest, submitted_at or _time(datetime.now(UTC)), origin, seal)
    # last, so that a recorded submission has all its files
    return record if store.create(_path(record.id), canonical_json(record.to_json())) else _first(store, record)


def _first(store: Store, record: Record) -> Record:
    """The record that was there first, or this one in its place if that one is none."""
    etag = store.etag(_path(record.id))
    try:
        return read_record(store, record.id)
    except Unproven as error:
        try:
            store.replace(_path(record.id), canonical_json(record.to_json()), if_match=etag)
        except Changed:
            return read_record(store, record.id)
        except StoreError as refused:
            raise error from refused
        logger.warning("another wrote submissions/%s.json first, and it was replaced: %s", record.id, error)
    return record


def read_record(store: Store, manifest_sha256: str) -> Record:
    """The recorded submission; raises BadSubmission when there is none, Unproven when it is not of these bytes."""
    try:
        data = store.read(_path(manifest_sha256))
    except KeyError as error:
        raise BadSubmission(f"expected a submitted model, got {manifest_sha256}; see `vetgate status`") from error
    except Denied:
        # more than a record is ever long
        data = b""
    try:
        blob = json.loads(data)
    except (ValueError, RecursionError):
        blob = None
    return Record.from_json(blob, manifest_sha256)


def find_record(store: Store, prefix: str) -> Record:
    """The one recorded submission whose manifest's SHA-256 begins so; raises BadSubmission otherwise."""
    found = beginning_with(store, prefix)
    if len(found) != 1:
        raise BadSubmission(
            f"expected the SHA-256 of one submission, or its beginning, got {prefix!r} which fits {len(found)}; "
            "see `vetgate status`"
        )
    return read_record(store, found[0])


def submitted(store: Store) -> list[str]:
    """The manifests of every recorded submission, by their names alone."""
    return [key.split("/")[1].removesuffix(".json") for key in store.list("submissions/")]


def beginning_with(store: Store, beginning: str) -> list[str]:
    """The manifests of the recorded submissions that begin so; of several, only those that are records."""
    found = [manifest for manifest in submitted(store) if manifest.startswith(beginning)]
    return found if len(found) < 2 else [record.id for record in records(store, found, logger.warning)]


def records(store: Store, manifests: Iterable[str], wrong: Callable[[str], object]) -> list[Record]:
    """The recorded submissions with these manifests, oldest first; `wrong` is told of each that is none.

    One that somebody wrote over must not keep the others from being seen.
    """
    found = []
    for manifest in manifests:
        try:
            found.append(read_record(store, manifest))
            # also that this version still reads what it says
            found[-1].submission  # noqa: B018
        except (Unproven, BadSubmission) as error:
            wrong(f"{manifest}: {error}")
    return sorted(found, key=lambda record: (record.submitted_at, record.id))


def seeds_of(settings: Settings) -> Seeds:
    """The seeds of this installation; its secret is made on first use, but not where the gate is elsewhere."""
    if settings.gate_url is not None and not settings.seed_secret.exists():
        raise StoreError(
            f"expected the secret of this installation's seeds at {settings.seed_secret}, got none; give gate and "
            "vetting workers the same file as VETGATE_SEED_SECRET"
        )
    return Seeds(secret_bytes_at(settings.seed_secret))


def seed_of(settings: Settings, record: Record, run: str = "") -> Seed:
    """The seed of a run ("" is the first) on a submission, recomputed from the secret; no store tells it."""
    seeds = seeds_of(settings)
    # an origin that this installation did not seal is none of ours
    origin = record.origin if record.origin and seeds.sealed(record.id, record.origin, record.seal) else ""
    return seeds.seed(record.id, run, origin)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _path(manifest_sha256: str) -> str:
    return f"submissions/{manifest_sha256}.json"


def fetch(store: Store, record: Record, destination: Path) -> None:
    """Copy a submission's files out of quarantine; raises StoreError unless they are the bytes recorded."""
    names, size = record.manifest.digests, record.manifest.size
    try:
        fetch_files(store, f"quarantine/{record.id}", destination, names, most=size)
        found = hash_directory(destination, max_bytes=size, max_files=len(names)).sha256
    except (Denied, NotUnderstood) as error:
        found = str(error)
    if found != record.id:
        raise StoreError(
            f"expected the submitted bytes in quarantine/{record.id}, got others ({found}); the store was tampered "
            "with: remove what lies there and submit the model again"
        )


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

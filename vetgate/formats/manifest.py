"""The manifest of a submission: what files it has, to the byte; and taking them in without following a link."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vetgate.digest import sha256_json
from vetgate.errors import BadSubmission, NotUnderstood, StoreError

CHUNK = 1 << 20
MAX_BYTES = 1 << 30
MAX_FILES = 16
# of a file: read, or mapped into memory
Bytes = bytes | memoryview
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a submission."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a submission, sorted by path; its `sha256` is the submission's identity."""

    files: tuple[FileEntry, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 in hex over the canonical JSON of the sorted entries."""
        return sha256_json(self.to_json())

    @property
    def digests(self) -> dict[str, str]:
        """Path to SHA-256, for signing and verifying."""
        return {entry.path: entry.sha256 for entry in self.files}

    @property
    def size(self) -> int:
        """Of all files together, in bytes."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {"files": [asdict(entry) for entry in self.files]}

    @classmethod
    def from_json(cls, blob: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_json` wrote; raises StoreError when it was altered into something else."""
        try:
            files = tuple(FileEntry(**entry) for entry in blob["files"])
            sound = all(
                isinstance(f.path, str)
                and FILE_NAME.fullmatch(f.path) is not None
                and isinstance(f.size, int)
                and f.size >= 0
                and _SHA256.fullmatch(f.sha256) is not None
                for f in files
            )
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"expected a manifest, got {type(error).__name__}: {error}; submit the model again"
            ) from error
        paths = [f.path for f in files]
        if not sound or set(blob) != {"files"} or paths != sorted(set(paths)):
            raise StoreError("expected a manifest of sorted, distinct, well-formed entries; submit the model again")
        return cls(files)


def take_in(
    source: Path,
    destination: Path,
    *,
    within: Path | None = None,
    check: Callable[[list[str]], object] | None = None,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> Manifest:
    """Copy a flat directory of plain files into the new directory `destination`, hashing what is copied.

    No link is followed and no file with a second name is taken; nor is a link on the way from `within`, where that is
    given, to `source`. `check` is told the names before anything is copied. The copies are read-only and on disk on
    return; after an error nothing is left. Raises NotUnderstood for what a submission may not hold, StoreError when
    writing fails, BadSubmission where there is no directory.
    """
    with _listed(source, max_files, within, check) as (folder, names):
        try:
            destination.mkdir(parents=True)
            entries: list[FileEntry] = []
            left = max_bytes
            for name in names:
                with open_plain(name, folder) as given:
                    entries.append(_copy(given, name, destination / name, left))
                left -= entries[-1].size
            _sync_directory(destination)
        except BaseException as error:
            if not isinstance(error, FileExistsError):
                _discard(destination, names)
            if isinstance(error, OSError):
                raise StoreError(f"expected to copy {source} to {destination}, got {error}; make room there") from error
            raise
    return Manifest(tuple(entries))


def hash_directory(directory: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> Manifest:
    """The manifest of the files that lie in `directory` now; refuses links and anything but plain files."""
    entries: list[FileEntry] = []
    with _listed(directory, max_files) as (folder, names):
        left = max_bytes
        for name in names:
            with open_plain(name, folder) as given:
                entries.append(_copy(given, name, None, left))
            left -= entries[-1].size
    return Manifest(tuple(entries))


@contextlib.contextmanager
def open_plain(name: str, folder: int) -> Iterator[int]:
    """A descriptor of the plain file `name` in the directory descriptor `folder`; refuses links, devices and pipes."""
    try:
        # O_NONBLOCK: opening a pipe for reading would otherwise wait for a writer
        given = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise NotUnderstood(
            f"expected {name} to be a plain file, got {_kind(name, folder)} ({error}); hand in a copy"
        ) from error
    try:
        status = os.fstat(given)
        if not stat.S_ISREG(status.st_mode):
            raise NotUnderstood(
                f"expected {name} to be a plain file, got {_kind(name, folder)}; hand in plain files only"
            )
        if status.st_nlink != 1:
            raise NotUnderstood(
                f"expected {name} to have one name, got a hard link with {status.st_nlink}; hand in a copy of its own"
            )
        yield given
    finally:
        os.close(given)


@contextlib.contextmanager
def _listed(
    directory: Path,
    max_files: int,
    within: Path | None = None,
    check: Callable[[list[str]], object] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    try:
        folder = _open_folder(directory, within)
    except OSError as error:
        # only of a way that others can lay links on is it said that it is none: a mistyped path is a matter of usage
        wrong = NotUnderstood if within is not None and error.errno in (errno.ELOOP, errno.ENOTDIR) else BadSubmission
        raise wrong(f"expected a directory with a submission, got {directory} ({error.strerror})") from error
    try:
        names = sorted(os.listdir(folder))
        if check is not None:
            check(names)
        check_file_names(names, max_files)
        yield folder, names
    finally:
        os.close(folder)


def _open_folder(directory: Path, within: Path | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    folder = os.open(directory if within is None else within, flags)
    for part in () if within is None else directory.relative_to(within).parts:
        try:
            below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)
        folder = below
    return folder


def check_file_names(names: Collection[str], max_files: int = MAX_FILES) -> None:
    """Raise NotUnderstood for names of files that a submission may not have, and for more of them than it may."""
    if len(names) > max_files:
        raise NotUnderstood(f"expected at most {max_files} files, got {len(names)}; hand in the model's files only")
    for name in names:
        if FILE_NAME.fullmatch(name) is None:
            raise NotUnderstood(
                f"expected file names of letters, digits, '.', '_', '-', got {name!r}; rename or remove it"
            )
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise NotUnderstood(f"expected names that differ in more than case, got {other} and {name}; rename one")


def _copy(given: int, name: str, target: Path | None, limit: int) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    out = None if target is None else os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        while chunk := os.read(given, CHUNK):
            size += len(chunk)
            if size > limit:
                raise NotUnderstood(f"expected at most {limit} more bytes, got more in {name}; hand in a smaller model")
            digest.update(chunk)
            rest = memoryview(chunk)
            while out is not None and rest:
                rest = rest[os.write(out, rest) :]
        if out is not None:
            os.fchmod(out, 0o444)
            os.fsync(out)
    finally:
        if out is not None:
            os.close(out)
    return FileEntry(name, size, digest.hexdigest())


def _kind(name: str, folder: int) -> str:
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except OSError:
        return "nothing readable"
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFREG: "a file",
    }
    return kinds.get(stat.S_IFMT(mode), "a device or socket")


def _sync_directory(directory: Path) -> None:
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _discard(directory: Path, names: list[str]) -> None:
    with contextlib.suppress(OSError):
        for name in names:
            (directory / name).unlink(missing_ok=True)
        directory.rmdir()

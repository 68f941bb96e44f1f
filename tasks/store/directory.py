"""The store in a local directory: the embedded default.

An object is written to a temporary file of the same file system, synced, and then given its name with a hard link,
which fails when the name is taken: no reader ever sees half of an object, and exactly one of several creators wins.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tasks.store.base import CHUNK, LARGEST_READ, BadKey, Changed, check_key, check_prefix, check_size, passed_over
from tasks.store.key_forms import keys_among
from vetgate.errors import StoreError

ABANDONED_SECONDS = 24 * 3600
QUARANTINE = "quarantine"

REMEDIES = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some of the disk quota",
    errno.EFBIG: "raise the limit on file size",
    errno.EROFS: "mount it writable",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "use a file system that has hard links, and give this user the right to it",
    errno.EOPNOTSUPP: "use a file system that has hard links",
    errno.ELOOP: "put the file itself there, no link to it",
}


class DirectoryStore:
    """Objects as read-only files below `root`, named by their keys; `root` is made when first written to."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._partial = self.root / ".partial"
        self._swept = False

    def create(self, key: str, data: bytes) -> bool:
        target = self._path(key)
        with _explained(target, "written"):
            return not self._taken(target) and self._publish(target, lambda file: file.write(data))

    def copy_in_file(self, key: str, path: Path, *, sha256: str | None = None) -> bool:
        target = self._path(key)
        with _explained(target, "written"):
            if self._taken(target):
                return False
            with path.open("rb") as source:
                return self._publish(target, lambda file: _copy(source, file, expected=sha256))

    def replace(self, key: str, data: bytes, *, if_match: str) -> str:
        target = self._path(key)
        with _explained(target, "replaced"):
            self._make(self.root)
            with (self.root / ".lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = self.etag(key) if target.is_file() else None
                if found != if_match:
                    raise Changed(f"expected {key} with etag {if_match}, got {found}; read it again and retry")
                with self._temporary(lambda file: file.write(data)) as temporary:
                    os.replace(temporary, target)
                _sync_directory(target.parent)
        return hashlib.sha256(data).hexdigest()

    def read(self, key: str) -> bytes:
        with self._open(key) as file:
            check_size(key, os.fstat(file.fileno()).st_size)
            return file.read()

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        data = self.read(key)
        return data, hashlib.sha256(data).hexdigest()

    def etag(self, key: str) -> str:
        with self._open(key) as file:
            status = os.fstat(file.fileno())
            if status.st_size > LARGEST_READ:
                # none of ours, and hours to hash: what tells it from others is enough to replace it
                return f"{status.st_size}-{status.st_ino}-{status.st_mtime_ns}"
            return _copy(file, None)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str, strange: Callable[[str], object] = passed_over) -> Iterator[str]:
        start = self.root / check_prefix(prefix).rpartition("/")[0]
        names: list[str] = []
        with _explained(start, "listed"):
            for folder, below, files in os.walk(start, onerror=_unless_absent):
                inside = Path(folder).relative_to(self.root).as_posix()
                if inside == ".":
                    below[:] = [name for name in below if not name.startswith(".")]
                names += [name if inside == "." else f"{inside}/{name}" for name in files]
        found = [key for key in names if key.startswith(prefix) and not key.startswith(".")]
        yield from keys_among(sorted(found, key=os.fsencode), strange)

    def fetch(self, key: str, path: Path, *, most: int = LARGEST_READ) -> str:
        with self._open(key) as source, _explained(path, "written"):
            check_size(key, os.fstat(source.fileno()).st_size, most)
            return write_whole(path, lambda file: _copy(source, file, key=key, most=most))

    def clock(self) -> None:
        """A directory has the clock of whoever writes to it."""

    def url(self, key: str) -> str:
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @staticmethod
    def _taken(target: Path) -> bool:
        if target.is_dir():
            raise BadKey(f"expected a key that is no prefix of others, got {target.name!r}; rename it")
        return target.is_file()

    @contextmanager
    def _open(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        with _explained(path, "read"):
            try:
                file = open(path, "rb", opener=_without_detour)  # noqa: SIM115 closed below, where it is handed out
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise KeyError(key) from error
            with file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise StoreError(f"expected a plain file at {path}, got a pipe or a device; remove it")
                yield file

    def _publish(self, target: Path, write: Callable[[BinaryIO], object]) -> bool:
        with self._temporary(write) as temporary:
            self._make(target.parent)
            try:
                os.link(temporary, target)
            except FileExistsError:
                self._taken(target)
                return False
            _sync_directory(target.parent)
        return True

    @contextmanager
    def _temporary(self, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
        self._make(self._partial)
        self._sweep()
        handle, name = tempfile.mkstemp(dir=self._partial)
        try:
            with open(handle, "wb") as file:
                write(file)
                file.flush()
                os.fchmod(file.fileno(), 0o444)
                os.fsync(file.fileno())
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove, once a store, what writers that were killed left behind; a live writer's file is younger."""
        if not self._swept:
            self._swept = True
            for path in self._partial.iterdir():
                try:
                    if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                        path.unlink(missing_ok=True)
                except FileNotFoundError:
                    continue  # its writer has just finished

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make(folder.parent)
            # what suppliers hand in is for this installation alone; who shares a store by its group still does
            private = self.root / QUARANTINE in (folder, *folder.parents)
            folder.mkdir(exist_ok=True, mode=0o770 if private else 0o777)
            _sync_directory(folder.parent)


def write_whole(path: Path, write: Callable[[BinaryIO], str]) -> str:
    """Give `path` its content whole or not at all, replacing what was there; returns what `write` returns."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with open(handle, "wb") as file:
            result = write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    return result


def check_digest(found: str, expected: str | None) -> str:
    """The digest found; raises StoreError when another one was expected."""
    if expected not in (None, found):
        raise StoreError(f"expected a file with sha256 {expected}, got {found}; it changed: hand it in again")
    return found


def _copy(
    source: BinaryIO,
    target: BinaryIO | None,
    *,
    expected: str | None = None,
    key: str = "",
    most: int = sys.maxsize,
) -> str:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        size += len(chunk)
        check_size(key, size, most)
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    return check_digest(digest.hexdigest(), expected)


def _without_detour(path: str, flags: int) -> int:
    # neither a link to follow nor a pipe to wait for
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def _explained(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "check the path and the disk")
        where = error.filename or path
        raise StoreError(f"expected {path} to be {done}, got {error.strerror or error} ({where}); {remedy}") from error

"""The object store: one small interface over a local directory or an S3 endpoint.

Keys are slash-separated names such as `evidence/<manifest>/abs/<key>.json`. What is created is never partial and never
overwritten; the few objects that change are replaced only if they are still what the writer read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Protocol

from vetgate.errors import Altered, Denied, StoreError

CHUNK = 1 << 20
MAX_KEY_BYTES = 1024
# what is larger is fetched into a file; nobody's memory is filled by what a stranger laid into the store
LARGEST_READ = 256 << 20
# of one folder of files: one more than any submission may hold tells as much as a million
MOST_NAMES = 1000
MAX_PART_BYTES = 255


class BadKey(StoreError):
    """A key that could leave the store, or that not every store can hold."""

    code = "bad-key"


class Changed(StoreError):
    """An object was to be replaced, but it is no longer what the writer read."""

    code = "changed"


def passed_over(name: str) -> None:
    """Say nothing of a strange object."""


class Store(Protocol):
    """What every store does; all of it raises StoreError when the store cannot be reached, read or written."""

    def create(self, key: str, data: bytes) -> bool:
        """Store `data` whole under a new key; False, storing nothing, when the key already exists."""

    def replace(self, key: str, data: bytes, *, if_match: str) -> str:
        """Replace an object whose etag is still `if_match`, return the new etag; raises Changed."""

    def read(self, key: str) -> bytes:
        """The object's bytes; raises KeyError when there is none, Denied for more than `LARGEST_READ`."""

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and the etag of exactly these bytes; raises KeyError and Denied, as `read` does."""

    def etag(self, key: str) -> str:
        """What `replace` expects as `if_match`; raises KeyError."""

    def exists(self, key: str) -> bool:
        """Whether the key holds an object."""

    def list(self, prefix: str, strange: Callable[[str], object] = passed_over) -> Iterator[str]:
        """The keys that start with `prefix`, in the order of their UTF-8 bytes; each can be read.

        What others laid there under a name that is no key, or has not the form of its folder's, is passed over, and
        `strange` told of it.
        """

    def copy_in_file(self, key: str, path: Path, *, sha256: str | None = None) -> bool:
        """`create` from a file, streaming; a file that is not `sha256` is refused and nothing stored."""

    def fetch(self, key: str, path: Path, *, most: int = LARGEST_READ) -> str:
        """Write the object to `path`, streaming, whole or not at all; its SHA-256 in hex.

        Raises KeyError when there is none, Denied for more than `most` bytes, before or as they are written.
        """

    def clock(self) -> datetime | None:
        """The moment as the store's last answer told it; None for a store without a clock of its own."""

    def url(self, key: str) -> str:
        """Where others find the object: a file:// or s3:// URL; `key` may be a prefix without its last slash."""


def check_files(store: Store, prefix: str, names: Collection[str]) -> None:
    """Raise Altered unless exactly files of these names lie below `prefix/`, StoreError where there is none at all."""
    strange: list[str] = []
    keys = list(islice(store.list(f"{prefix}/", strange.append), MOST_NAMES))
    check_names({key.removeprefix(f"{prefix}/") for key in [*keys, *files_among(strange)]}, prefix, names)


def check_names(found: Collection[str], where: str, names: Collection[str]) -> None:
    """Raise Altered unless the names found are these, StoreError where none was found at all."""
    if not found:
        # a disk that is not mounted must not demote what lies on it; loading from there gives nothing anyway
        raise StoreError(f"expected the vetted bytes in {where}, got no file at all; mount the disk or restore them")
    if wrong := sorted(set(found) ^ set(names)):
        raise Altered(
            f"expected exactly the promoted files in {where}, got others: {', '.join(wrong)[:300]}; "
            "restore the vetted bytes"
        )


def fetch_files(store: Store, prefix: str, destination: Path, names: Collection[str], *, most: int) -> Path:
    """The new directory `destination` with the files of these names below `prefix/`, of together at most `most` bytes.

    Whatever else lies there is left. Raises Denied for more bytes, StoreError where one is not there.
    """
    destination.mkdir(parents=True, mode=0o700)
    for name in names:
        try:
            store.fetch(f"{prefix}/{name}", destination / name, most=most)
        except KeyError as error:
            raise StoreError(f"expected {prefix} to hold {name}, got nothing; another process removed it") from error
        most -= (destination / name).stat().st_size
    return destination


def files_among(names: list[str]) -> list[str]:
    """The strange names that are files to whoever reads a folder; what S3 consoles make for an empty one is none."""
    return [name for name in names if not name.endswith("/")]


def check_key(key: str) -> str:
    """The key itself; raises BadKey unless every store can hold it and no store can be left through it."""
    parts = key.split("/")
    bad = (
        "an empty part" if not all(parts)
        else "'.' or '..'" if any(part in (".", "..") for part in parts)
        else "a leading dot" if key.startswith(".")
        else "an unprintable character" if not key.isprintable()
        else "a backslash" if "\\" in key
        else "more than 1024 bytes, or 255 in a part" if _too_long(parts)
        else None
    )  # fmt: skip
    if bad:
        raise BadKey(f"expected a store key of plain names joined by '/', got {key!r} with {bad}; rename the file")
    return key


def check_size(key: str, size: int, most: int | None = None) -> None:
    """Raise Denied for an object that is larger than it may be: `LARGEST_READ`, or `most`."""
    bound = LARGEST_READ if most is None else most
    if size > bound:
        raise Denied(f"expected an object of at most {bound} bytes under {key}, got {size}; it is none of ours")


def check_prefix(prefix: str) -> str:
    """The prefix itself; raises BadKey when no valid key could start with it."""
    if prefix:
        check_key(prefix if not prefix.endswith("/") else prefix + "x")
    return prefix


def _too_long(parts: list[str]) -> bool:
    sizes = [len(part.encode("utf-8", "surrogateescape")) for part in parts]
    return max(sizes) > MAX_PART_BYTES or sum(sizes) + len(sizes) - 1 > MAX_KEY_BYTES

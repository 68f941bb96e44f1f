"""What is entered once, by its name: a cache in the gate's home, so that asking does not read the whole ledger.

It is made of entries that were read and verified in their order, each once, and begins anew where it does not fit the
ledger. A hit is read again from the ledger before it counts; losing the file costs one reading of everything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tasks.records.ledger_chain import Entry, following, read_entry
from tasks.settings import Settings
from tasks.store.base import Store
from vetgate.errors import StoreError
from vetgate.trust.keys import TrustRoot

FILE = "ledger-index.db"
TABLES = """
    CREATE TABLE IF NOT EXISTS once (store TEXT, name TEXT, sequence INTEGER, PRIMARY KEY (store, name)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS last (store TEXT PRIMARY KEY, sequence INTEGER, sha256 TEXT) WITHOUT ROWID;
"""
WAIT_SECONDS = 60.0


def entered(settings: Settings, store: Store, trust: TrustRoot, once: str) -> Entry | None:
    """The entry of this name, None when the ledger has none up to its end; raises Denied on a bad entry."""
    with _index(settings) as index:
        _read_on(settings, index, store, trust)
        if (number := _number(settings, index, once)) is None:
            return None
        entry = _entry(store, trust, number)
        if entry is None or entry.once != once:
            # it was made of another ledger than this one
            _forget(settings, index)
            _read_on(settings, index, store, trust)
            number = _number(settings, index, once)
            entry = None if number is None else read_entry(store, trust, number)
        return entry


def _number(settings: Settings, index: sqlite3.Connection, once: str) -> int | None:
    asked = "SELECT sequence FROM once WHERE store = ? AND name = ?"
    found: tuple[int] | None = index.execute(asked, (settings.store, once)).fetchone()
    return None if found is None else found[0]


def _read_on(settings: Settings, index: sqlite3.Connection, store: Store, trust: TrustRoot) -> None:
    """Take in what was entered since; all of it, if what it knows as the last is not what the ledger has there."""
    known = index.execute("SELECT sequence, sha256 FROM last WHERE store = ?", (settings.store,)).fetchone()
    last = None
    if known is not None:
        last = _entry(store, trust, known[0])
        if last is None or last.sha256 != known[1]:
            _forget(settings, index)
            last = None
    fresh = None
    for fresh in following(store, trust, last):
        if fresh.once is not None:
            # the first of a name is the one that counts
            index.execute("INSERT OR IGNORE INTO once VALUES (?, ?, ?)", (settings.store, fresh.once, fresh.sequence))
    if fresh is not None:
        index.execute("INSERT OR REPLACE INTO last VALUES (?, ?, ?)", (settings.store, fresh.sequence, fresh.sha256))


def _entry(store: Store, trust: TrustRoot, sequence: int) -> Entry | None:
    try:
        return read_entry(store, trust, sequence)
    except KeyError:
        return None


def _forget(settings: Settings, index: sqlite3.Connection) -> None:
    for table in ("once", "last"):
        index.execute(f"DELETE FROM {table} WHERE store = ?", (settings.store,))


def _opened(path: Path) -> sqlite3.Connection:
    index = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
    try:
        # a power cut may lose the last entries, which are then read again, and nothing else
        index.execute("PRAGMA journal_mode = WAL")
        index.execute("PRAGMA synchronous = NORMAL")
        index.executescript(TABLES)
    except sqlite3.Error:
        index.close()
        raise
    return index


@contextmanager
def _index(settings: Settings) -> Iterator[sqlite3.Connection]:
    """The index, held by one process at a time; one that is no database begins anew."""
    path = settings.home / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            opened = _opened(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            for part in (path, *(path.with_name(path.name + more) for more in ("-wal", "-shm"))):
                part.unlink(missing_ok=True)
            opened = _opened(path)
        with closing(opened) as index:
            index.execute("BEGIN IMMEDIATE")
            yield index
            index.execute("COMMIT")
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"expected to write {path}, got {error}; check the disk, or remove the file") from error

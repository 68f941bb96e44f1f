"""What the ledger says now: the newest verdict on each submission, what is revoked, where each alias was last put.

A cache in this home of entries that were read and verified in their order, each once; a question reads what was entered
since. Who writes the store cannot write here. What was read once must still stand in the store: a ledger that ends
before it or tells it otherwise is refused. Losing the file costs one reading of everything, and so does a file that is
not as it was left, such as one of a backup beside what a killed process had not yet written into it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.file_lock import locked_within
from tasks.records.ledger_chain import (
    NUMBERED,
    PREFIX,
    START,
    Entry,
    entry_at,
    entry_key,
    following,
    remember,
    remembered,
    removed,
)
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.digest import sha256_json
from vetgate.errors import BadSignature, Denied, Removed, StoreError
from vetgate.trust import attest
from vetgate.trust.keys import GATE, TrustRoot, read_trust_root
from vetgate.trust.strict_json import as_time

logger = logging.getLogger(__name__)
FILE = "ledger-state.db"
LOCK = "ledger-state.lock"
TABLES = {
    "read_so_far": "store TEXT PRIMARY KEY, sequence INTEGER, sha256 TEXT, keys TEXT, first TEXT, sums TEXT",
    "once": "store TEXT, name TEXT, sequence INTEGER, PRIMARY KEY (store, name)",
    "verdicts": "store TEXT, manifest TEXT, sequence INTEGER, key TEXT, sha256 TEXT, digest TEXT, name TEXT,"
    " verdict TEXT, issued TEXT, expires TEXT, PRIMARY KEY (store, manifest)",
    "revocations": "store TEXT, digest TEXT, sequence INTEGER, key TEXT, sha256 TEXT, issued TEXT,"
    " PRIMARY KEY (store, digest)",
    "promotions": "store TEXT, name TEXT, version TEXT, manifest TEXT, sequence INTEGER, key TEXT, sha256 TEXT,"
    " digest TEXT, PRIMARY KEY (store, name, version)",
    "moves": "store TEXT, name TEXT, alias TEXT, sequence INTEGER, kind TEXT, version TEXT, before TEXT, issued TEXT,"
    " PRIMARY KEY (store, name, alias)",
    "submitters": "store TEXT, manifest TEXT, keyid TEXT, sequence INTEGER, PRIMARY KEY (store, manifest, keyid)",
}
FACTS = [table for table in TABLES if table != "read_so_far"]
# every row holds the number of its entry: of rows of two moments these do not come out as they were left
SUMS = " UNION ALL ".join(
    f"SELECT count(*), sum(sequence), sum(sequence * sequence) FROM {table} WHERE store = :store" for table in FACTS
)
WAIT_SECONDS = 60.0
# the files whose sums this process found right, as they were then
_proved: dict[tuple[Path, str], list[tuple[int, ...]]] = {}


@dataclass(frozen=True)
class Told:
    """A statement that an entry tells of: where it is kept, the SHA-256 of its bytes there, and its own digest."""

    sequence: int
    key: str
    sha256: str
    digest: str


def as_entered(store: Store, told: Told) -> bytes:
    """The bytes of the object that an entry tells of; raises Removed, with an alarm, where they are not as entered."""
    try:
        data = store.read(told.key)
    except KeyError:
        raise removed(f"expected {told.key}, which entry {told.sequence} tells of, got none; restore it") from None
    except Denied as error:
        raise removed(f"expected {told.key} as entry {told.sequence} tells of it, got: {error}") from error
    if hashlib.sha256(data).hexdigest() != told.sha256:
        raise removed(f"expected {told.key} as entry {told.sequence} tells of it, got other bytes; restore it")
    return data


@dataclass(frozen=True)
class LastMove:
    """The newest entry that moved an alias: number, kind, and the version it stands for since; None: it was deleted.

    `before` is where the entry before had put it, `issued` the moment as text.
    """

    sequence: int
    kind: str
    version: str | None
    before: str | None
    issued: str


@dataclass(frozen=True, eq=False)
class LedgerState:
    """The verified ledger of a store, at least up to entry `end`, with its SHA-256. Several threads may ask it.

    `id` names the ledger: it is the SHA-256 of its first entry.
    """

    settings: Settings
    store: Store
    trust: TrustRoot
    end: int
    sha256: str
    id: str
    _index: sqlite3.Connection
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        weakref.finalize(self, self._index.close)

    @property
    def last(self) -> dict[str, Any]:
        """Number and SHA-256 of the last entry, as a verdict says after which one it was issued."""
        return {"sequence": self.end, "sha256": self.sha256}

    def verdict(self, manifest: str) -> Told | None:
        """The newest verdict on a submission in the ledger's order, or None."""
        row = self._row("SELECT sequence, key, sha256, digest FROM verdicts WHERE store = ? AND manifest = ?", manifest)
        return None if row is None else Told(*row)

    def verdicts_on(self, name: str) -> list[tuple[str, str]]:
        """Each submission of this name with its newest verdict, the newest first: manifest and verdict."""
        asked = "SELECT manifest, verdict FROM verdicts WHERE store = ? AND name = ? ORDER BY sequence DESC"
        with self._guard, _explained(self.settings):
            return self._index.execute(asked, (self.settings.store, name)).fetchall()

    def revocation(self, digest: str) -> Told | None:
        """What revoked the statement with this digest, or None."""
        row = self._row("SELECT sequence, key, sha256, digest FROM revocations WHERE store = ? AND digest = ?", digest)
        return None if row is None else Told(*row)

    def move(self, name: str, alias: str) -> LastMove | None:
        """The gate's newest move of an alias of prod.<name>, or None when it made none.

        The entry that gives a name another champion also puts the one before under `previous`.
        """
        asked = "SELECT sequence, kind, version, before, issued FROM moves WHERE store = ? AND name = ? AND alias = ?"
        row = self._row(asked, name, alias)
        return None if row is None else LastMove(*row)

    def promoted(self, name: str, version: str) -> str | None:
        """The SHA-256 of the manifest that the gate promoted as this version of prod.<name>; None if it never did."""
        asked = "SELECT manifest FROM promotions WHERE store = ? AND name = ? AND version = ?"
        row = self._row(asked, name, version)
        return None if row is None else str(row[0])

    def promotion(self, name: str, version: str) -> Told | None:
        """The statement by which the gate promoted this version of prod.<name>; None if it never did.

        Its digest is that of the verdict that let it through.
        """
        asked = "SELECT sequence, key, sha256, digest FROM promotions WHERE store = ? AND name = ? AND version = ?"
        row = self._row(asked, name, version)
        return None if row is None else Told(*row)

    def not_admitted_since(self, manifest: str, now: datetime) -> datetime | None:
        """Since when the newest verdict lets a submission through no more, None where it does: as entries have it.

        That is the entry of a verdict that admits nothing, the end of one, or its revocation, whichever came first.
        """
        asked = "SELECT verdict, issued, expires, digest FROM verdicts WHERE store = ? AND manifest = ?"
        row = self._row(asked, manifest)
        if row is None:
            return None
        verdict, issued, expires, digest = row
        ended = [] if verdict in attest.ADMITTED else [as_time(issued, "issued")]
        ended += [end] if expires is not None and (end := as_time(expires, "expires")) <= now else []
        revoked = self._row("SELECT issued FROM revocations WHERE store = ? AND digest = ?", digest)
        ended += [] if revoked is None else [as_time(revoked[0], "issued")]
        return min(ended, default=None)

    def entered(self, once: str) -> int | None:
        """The number of the first entry of this name, or about the object with this key; None when there is none."""
        row = self._row("SELECT sequence FROM once WHERE store = ? AND name = ?", once)
        return None if row is None else int(row[0])

    def objects(self, folder: str) -> dict[str, int]:
        """The keys of the objects in a folder of the store that entries tell of, with the number of the first entry."""
        asked = "SELECT name, sequence FROM once WHERE store = ? AND name >= ? AND name < ? ORDER BY sequence"
        with self._guard, _explained(self.settings):
            # "0" follows "/" in the order of bytes
            return dict(self._index.execute(asked, (self.settings.store, f"{folder}/", f"{folder}0")))

    def decided(self, beginning: str) -> dict[str, str]:
        """The submissions whose manifest's SHA-256 begins so, with the digest of the newest verdict on each."""
        asked = "SELECT manifest, digest FROM verdicts WHERE store = ? AND substr(manifest, 1, ?) = ?"
        with self._guard, _explained(self.settings):
            return dict(self._index.execute(asked, (self.settings.store, len(beginning), beginning)))

    def promoted_of(self, name: str) -> set[str]:
        """The SHA-256 of every manifest that the gate promoted under a name."""
        asked = "SELECT manifest FROM promotions WHERE store = ? AND name = ?"
        with self._guard, _explained(self.settings):
            return {row[0] for row in self._index.execute(asked, (self.settings.store, name))}

    def signers(self, manifest: str) -> frozenset[str]:
        """The ids of the keys that are entered as those that signed a submission."""
        asked = "SELECT keyid FROM submitters WHERE store = ? AND manifest = ?"
        with self._guard, _explained(self.settings):
            return frozenset(row[0] for row in self._index.execute(asked, (self.settings.store, manifest)))

    def _row(self, asked: str, *about: str) -> tuple[Any, ...] | None:
        with self._guard, _explained(self.settings):
            row: tuple[Any, ...] | None = self._index.execute(asked, (self.settings.store, *about)).fetchone()
        return row


def ledger_state(settings: Settings) -> LedgerState:
    """The ledger as it is now; raises Removed, with an alarm, where it is not whole or ends before what was known.

    Needs no private key. A store without a ledger is believed to have none only where this home never knew one.
    """
    store = open_store(settings)
    trust = _trust(settings, store)
    with _explained(settings):
        try:
            return _state(settings, store, trust, _opened(settings.home / FILE))
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            # pages of two moments need not even make a database
            logger.warning("%s is read anew: %s", settings.home / FILE, error)
            return _state(settings, store, trust, _opened(settings.home / FILE, anew=True))


def _state(settings: Settings, store: Store, trust: TrustRoot, index: sqlite3.Connection) -> LedgerState:
    try:
        # one process of this home at a time: the others find what it has read
        index.execute("BEGIN IMMEDIATE")
        try:
            last, first = _read_on(settings, index, store, trust)
        except Removed:
            raise
        except Denied as error:
            raise removed(str(error)) from error
        index.execute("COMMIT")
    except BaseException:
        index.close()
        raise
    end, sha256 = (last.sequence, last.sha256) if last else (0, START)
    return LedgerState(settings, store, trust, end, sha256, first, index)


def check_index(state: LedgerState, chain: Sequence[Entry]) -> None:
    """Raise StoreError unless this home's index says what the entries say; `chain` are those from the first on."""
    index, entries = state._index, list(chain)
    with state._guard, _explained(state.settings), closing(_with_tables(sqlite3.connect(":memory:"))) as expected:
        index.execute("BEGIN")
        try:
            ((end,),) = index.execute("SELECT sequence FROM read_so_far WHERE store = ?", (state.settings.store,))
            if end > len(entries):
                # entered since
                entries += following(state.store, state.trust, entries[-1] if entries else None)
            for entry in entries[:end]:
                _take_in(state.settings.store, expected, entry)
            for table in FACTS:
                asked = f"SELECT * FROM {table} WHERE store = ? ORDER BY 1, 2, 3"
                told, found = (it.execute(asked, (state.settings.store,)).fetchall() for it in (expected, index))
                if told != found:
                    raise StoreError(
                        f"expected {state.settings.home / FILE} to say of {table} what the ledger does, got "
                        f"{len(set(found) ^ set(told))} rows that differ; remove that file, it is made anew"
                    )
        finally:
            index.execute("COMMIT")


def _trust(settings: Settings, store: Store) -> TrustRoot:
    try:
        return read_trust_root(settings.trust_root)
    except BadSignature:
        if settings.trust_root.exists() or remembered(settings) is not None or store.exists(entry_key(1)):
            raise
        return TrustRoot(())  # nothing was decided here yet


def _read_on(settings: Settings, index: sqlite3.Connection, store: Store, trust: TrustRoot) -> tuple[Entry | None, str]:
    """Take in what was entered since; the last entry, and the SHA-256 of the first."""
    memory, keys = remembered(settings), sha256_json([k.to_json() for k in trust.keys if k.role == GATE])
    known, first = _last(settings, index, store, trust, keys)
    last, cold = known, known is None
    for entry in following(store, trust, last):
        _check_memory(entry, memory)
        try:
            _take_in(settings.store, index, entry)
        except KeyError as error:
            raise Denied(
                f"expected entry {entry.sequence} of the ledger to say its {error.args[0]}, got none"
            ) from None
        last, first = entry, entry.sha256 if entry.sequence == 1 else first
    end = last.sequence if last else 0
    if memory is not None and end < memory[0]:
        raise removed(f"expected {memory[0]} entries in the ledger, got {end}: its end was cut off; restore it")
    if cold:
        listed = max((int(found[1]) for key in store.list(PREFIX) if (found := NUMBERED.fullmatch(key))), default=0)
        if listed > end and entry_at(store, trust, end + 1) is None:
            raise removed(f"expected entry {end + 1} of the ledger, got none, and {listed} entries: it was removed")
    if last is None:
        return None, START
    _check_memory(last, memory)
    if last is not known:
        row = (settings.store, end, last.sha256, keys, first, _sums(settings, index))
        index.execute("INSERT OR REPLACE INTO read_so_far VALUES (?, ?, ?, ?, ?, ?)", row)
    remember(settings, last)
    return last, first


def _last(
    settings: Settings, index: sqlite3.Connection, store: Store, trust: TrustRoot, keys: str
) -> tuple[Entry | None, str]:
    """The last entry that was taken in, if it still stands in the store, and the SHA-256 of the first one.

    None where all must be read anew.
    """
    asked = "SELECT sequence, sha256, keys, first, sums FROM read_so_far WHERE store = ?"
    known = index.execute(asked, (settings.store,)).fetchone()
    if known is not None and _is_as_left(settings, index, known[4]):
        entry = entry_at(store, trust, known[0]) if known[2] == keys else None
        if entry is not None and entry.sha256 == known[1]:
            return entry, known[3]
        memory = remembered(settings)
        if known[2] == keys and (memory is None or memory[0] < known[0]):
            raise removed(
                f"expected entry {known[0]} of the ledger as it was read, got {'another' if entry else 'none'}; "
                f"restore the ledger, or remove {settings.home / FILE} if this store was made anew"
            )
    # the keys are others, or the file is not as it was left, or of another ledger than what this home remembers
    for table in TABLES:
        index.execute(f"DELETE FROM {table} WHERE store = ?", (settings.store,))
    return None, START


def _is_as_left(settings: Settings, index: sqlite3.Connection, sums: str) -> bool:
    """Whether all rows are of one moment; they are looked at again when the file has changed."""
    path = settings.home / FILE
    now, place = _stats(path), (path, settings.store)
    if _proved.get(place) == now:
        return True
    if sums != _sums(settings, index):
        logger.warning("%s is not as it was left, as if restored over a process that was killed; it is read anew", path)
        return False
    _proved[place] = now
    return True


def _sums(settings: Settings, index: sqlite3.Connection) -> str:
    return sha256_json(index.execute(SUMS, {"store": settings.store}).fetchall())


def _stats(path: Path) -> list[tuple[int, ...]]:
    """What changes with the content of the index and of what is not yet written into it."""
    found: list[tuple[int, ...]] = []
    for part in (path, path.with_name(f"{path.name}-wal")):
        with suppress(FileNotFoundError):
            stat = os.stat(part)
            # an empty one is made and removed by whoever only reads
            found += [(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)] if stat.st_size else []
    return found


def _check_memory(entry: Entry, memory: tuple[int, str] | None) -> None:
    if memory is not None and entry.sequence == memory[0] and entry.sha256 != memory[1]:
        raise removed(f"expected entry {memory[0]} of the ledger as its gate left it, got another; restore the ledger")


def _take_in(store: str, index: sqlite3.Connection, entry: Entry) -> None:
    said, number = entry.subject, entry.sequence
    for name in {entry.once, said.get("key")} - {None}:
        # the first of a name is the one that counts
        index.execute("INSERT OR IGNORE INTO once VALUES (?, ?, ?)", (store, name, number))
    if entry.kind == "verdict":
        told = (number, said["key"], said["sha256"], said["attestation"], said["name"], said["verdict"])
        row = (store, said["manifest"], *told, entry.issued, said["expires"])
        index.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    elif entry.kind == "revocation":
        revoked = (store, said["digest"], number, said["key"], said["sha256"], entry.issued)
        index.execute("INSERT OR IGNORE INTO revocations VALUES (?, ?, ?, ?, ?, ?)", revoked)
    elif entry.kind == "submitter":
        signed = (store, said["manifest"], said["keyid"], number)
        index.execute("INSERT OR IGNORE INTO submitters VALUES (?, ?, ?, ?)", signed)
    elif entry.kind == "promotion":
        by = (number, said["key"], said["sha256"], said["attestation"])
        promoted = (store, said["name"], said["version"], said["manifest"], *by)
        index.execute("INSERT OR IGNORE INTO promotions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", promoted)
        if said.get("alias") is not None:
            _move(store, index, entry, said["alias"], said["version"])
            if said["alias"] == "champion" and said["old"] not in (None, said["version"]):
                _move(store, index, entry, "previous", said["old"])
    elif entry.kind in ("demotion", "bypass") and said["alias"] is not None:
        # one that a killed run left is entered late; where the alias was moved after it, that stands
        _move(store, index, entry, said["alias"], said["to"], before=said.get("since") or entry.sequence)


def _move(
    store: str, index: sqlite3.Connection, entry: Entry, alias: str, version: str | None, *, before: int | None = None
) -> None:
    """Take in a move of an alias; with `before`, unless one with a higher number than that is known."""
    place = (store, entry.subject["name"], alias)
    asked = "SELECT version, sequence FROM moves WHERE store = ? AND name = ? AND alias = ?"
    version_before, sequence = index.execute(asked, place).fetchone() or (None, 0)
    if before is not None and sequence > before:
        return
    row = (*place, entry.sequence, entry.kind, version, version_before, entry.issued)
    index.execute("INSERT OR REPLACE INTO moves VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)


def _opened(path: Path, *, anew: bool = False) -> sqlite3.Connection:
    """The index; one that is no database begins anew.

    One process of this home at a time: SQLite waits for nobody when two make a file at once, and none may begin anew
    what another has just made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(LOCK), "a") as lock:
        if not locked_within(lock, WAIT_SECONDS):
            raise StoreError(
                f"expected {lock.name} within {WAIT_SECONDS:g} seconds, got another process that holds it; see with "
                "lsof which one, and end it"
            )
        try:
            if anew:
                raise sqlite3.DatabaseError("it is to be made anew")
            return _connected(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            for part in (path, *(path.with_name(path.name + more) for more in ("-wal", "-shm"))):
                part.unlink(missing_ok=True)
            return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    index = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        # a power cut may lose the last entries, which are then read again, and nothing else
        index.execute("PRAGMA journal_mode = WAL")
        index.execute("PRAGMA synchronous = NORMAL")
        return _with_tables(index)
    except sqlite3.Error:
        index.close()
        raise


def _with_tables(index: sqlite3.Connection) -> sqlite3.Connection:
    for table, columns in TABLES.items():
        index.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns}) WITHOUT ROWID")
    return index


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    path = settings.home / FILE
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"expected to write {path}, got {error}; check the disk, or remove the file") from error

"""The ledger's chain: each decision is one signed object that holds the SHA-256 of the one before it.

The next sequence number is taken with a conditional create, so that of several gates exactly one gets it. The gate
remembers the last entry it knows in its home: from there it finds the end, and a tail that was cut off is noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks import events
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.directory import write_whole
from tasks.store.open import open_store
from vetgate.digest import canonical_json
from vetgate.errors import Denied, Removed, StoreError, WrongClock
from vetgate.trust import dsse
from vetgate.trust.dsse import MAX_CLOCK_SKEW
from vetgate.trust.keys import GATE, TrustRoot, key_id, load_or_create_key, read_trust_root, utc_now
from vetgate.trust.statements import LEDGER, claimed, sign_statement, verify_statement
from vetgate.trust.strict_json import as_object, as_sha256, as_text, as_time, parse, time_text
from vetgate.verdict.policy import load_policy

KINDS = (
    *("verdict", "promotion", "denial", "demotion", "bypass"),
    *("waiver", "approval", "revocation", "rescan", "submitter"),
)
PREFIX = "ledger/"
NUMBERED = re.compile(PREFIX + r"(\d{12})\.json")
START = "0" * 64
# of a ledger that this home has not read yet, so many entries are fetched at a time, by so many threads
AHEAD, READERS = 64, 16


@dataclass(frozen=True)
class Entry:
    """One decision: its place, what it is about, and the SHA-256 of the entry before and of its own stored bytes.

    `once` names what must not be entered a second time.
    """

    sequence: int
    kind: str
    subject: Mapping[str, Any]
    issued: str
    previous: str
    once: str | None
    sha256: str


def append(
    settings: Settings, kind: str, subject: Mapping[str, Any], *, once: str | None = None, since: int | None = None
) -> Entry:
    """Enter a decision at the end of the ledger, signed by the gate; raises Removed when the end is not as it was left.

    With `once`, the entry of that name is returned if there is one after number `since`, which was the last before
    any writer could have made it.
    """
    if kind not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, got {kind!r}")
    key, trust = gate_key(settings)
    store = open_store(settings)
    last = _left(settings, store, trust)
    if once is not None and since is not None and since < _number(last):
        last = read_entry(store, trust, since) if since else None
    while True:
        for entry in following(store, trust, last):
            if once is not None and entry.once == once:
                remember(settings, entry)
                return entry
            last = entry
        data = _signed(key, last, kind, subject, once, _dated(settings, store, last, utc_now()))
        if store.create(entry_key(_number(last) + 1), data):
            made = _entry(data)
            remember(settings, made)
            return made


def head(settings: Settings) -> int:
    """The sequence number of the last entry, 0 when there is none; raises Denied when the end is not as it was left."""
    return _number(_end(settings))


def signing_time(settings: Settings, now: datetime) -> datetime:
    """The moment to sign with: `now`, and never before the last entry; raises WrongClock.

    A clock a little behind the last entry is overtaken by it. One that is further behind, that the store's own clock
    contradicts, or that would have the ledger quiet for longer than the policy says, dates wrongly what it signs.
    """
    last = _end(settings)
    return _dated(settings, open_store(settings), last, now)


def not_before(last: Entry, now: datetime) -> datetime:
    """`now`, or the moment of a verified entry where that is a little later; raises WrongClock where it is much."""
    proven = as_time(last.issued, "issued")
    if now < proven - MAX_CLOCK_SKEW:
        raise WrongClock(
            f"expected a clock after the ledger's last entry, of {last.issued}, got {time_text(now)}; set it right"
        )
    return max(now, proven)


def check_clock(store: Store, now: datetime) -> datetime | None:
    """The store's own clock, None for one that has none; raises WrongClock where it contradicts `now`."""
    theirs = store.clock()
    if theirs is not None and abs(now - theirs) > MAX_CLOCK_SKEW:
        raise WrongClock(f"expected the clock of the store, {time_text(theirs)}, got {time_text(now)}; set this one")
    return theirs


def gate_key(settings: Settings) -> tuple[Ed25519PrivateKey, TrustRoot]:
    """The gate's key and the trust root, which must hold it; both are made when neither is there. Raises Denied."""
    if settings.gate_key.exists():
        # one that was taken away is not made anew: that would undo it
        read_trust_root(settings.trust_root)
    key = load_or_create_key(settings.gate_key, settings.trust_root, now=utc_now())
    trust = read_trust_root(settings.trust_root)
    if trust.key(key_id(key)).role != GATE:
        raise Denied(
            f"expected {settings.gate_key} to be a gate's key, got one with another role; set VETGATE_GATE_KEY"
        )
    return key, trust


def entries(store: Store) -> Iterator[Entry]:
    """Every entry in order, as it stands: `verify_ledger` is what proves them."""
    for key in store.list(PREFIX):
        yield _entry(store.read(key))


def read_entry(store: Store, trust: TrustRoot, sequence: int) -> Entry:
    """The entry with this number, signed by the gate with a key that was valid then; raises KeyError or Denied."""
    data = store.read(entry_key(sequence))
    entry = _entry(data)
    # an old entry outlives its key's window: it is held by the chain, whose end is new
    verify_statement(dsse.read_envelope(data), trust, LEDGER, {GATE}, as_time(entry.issued, "issued"))
    if entry.sequence != sequence:
        raise Denied(f"expected entry {sequence} of the ledger, got {entry.sequence} in its place; it was reordered")
    return entry


def check_link(entry: Entry, last: Entry | None) -> None:
    """Raise Denied unless an entry follows the last one (None: it is the first)."""
    if entry.previous != (last.sha256 if last else START):
        raise Denied(
            f"expected entry {entry.sequence} of the ledger to hold the one before, got another; it was changed"
        )
    if last is not None and as_time(entry.issued, "issued") < as_time(last.issued, "issued"):
        raise Denied(f"expected entry {entry.sequence} of the ledger after {last.issued}, got {entry.issued}")


def removed(what: str) -> Removed:
    """The error that something which the ledger tells of is not there as it was entered, with its alarm."""
    events.emit(events.LEDGER_BROKEN, "ledger", {"found": what}, once=what)
    return Removed(what)


def remembered(settings: Settings) -> tuple[int, str] | None:
    """Number and SHA-256 of the last entry that this home knows of its store; None when it knows none."""
    path = _memory(settings)
    try:
        stored = parse(path.read_bytes(), str(path)).get(settings.store)
    except FileNotFoundError:
        return None
    except (OSError, AttributeError) as error:
        raise StoreError(f"expected to read {path}, got {error}; check the disk") from error
    if stored is None:
        return None
    fields = as_object(stored, {"sequence", "sha256"}, str(path))
    return int(fields["sequence"]), as_sha256(fields["sha256"], "sha256")


def remember(settings: Settings, entry: Entry) -> None:
    """Keep the entry as the last one known, unless a later one is."""
    path = _memory(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = remembered(settings)
            if known is not None and known[0] >= entry.sequence:
                return
            stored = parse(path.read_bytes(), str(path)) if path.exists() else {}
            stored[settings.store] = {"sequence": entry.sequence, "sha256": entry.sha256}
            write_whole(path, lambda file: str(file.write(canonical_json(stored))))
    except OSError as error:
        raise StoreError(f"expected to write {path}, got {error.strerror}; check the disk") from error


def entry_key(sequence: int) -> str:
    """Where the entry with this number is kept."""
    return f"{PREFIX}{sequence:012}.json"


def _left(settings: Settings, store: Store, trust: TrustRoot) -> Entry | None:
    """The last entry that this gate knows, as it left it; without a memory, the last that the store lists."""
    known = remembered(settings)
    if known is None:
        last = max((int(found[1]) for key in store.list(PREFIX) if (found := NUMBERED.fullmatch(key))), default=0)
        return read_entry(store, trust, last) if last else None
    try:
        entry = read_entry(store, trust, known[0])
    except KeyError:
        what = f"expected entry {known[0]} of the ledger, got none: it was removed; restore the ledger"
        raise removed(what) from None
    if entry.sha256 != known[1]:
        raise removed(f"expected entry {known[0]} of the ledger as this gate left it, got another; restore the ledger")
    return entry


def following(store: Store, trust: TrustRoot, last: Entry | None) -> Iterator[Entry]:
    """The entries after `last` (None: all), each signed and holding the one before it; raises Denied."""
    for entry in _in_order(store, trust, _number(last) + 1):
        check_link(entry, last)
        yield entry
        last = entry


def _in_order(store: Store, trust: TrustRoot, first: int) -> Iterator[Entry]:
    """The entries from a number on, until there is none."""
    # most callers have read all but the newest
    for number in range(first, first + AHEAD):
        if (entry := entry_at(store, trust, number)) is None:
            return
        yield entry
    # one that reads the whole would wait for each answer of a store that is far away
    with ThreadPoolExecutor(READERS) as pool:
        for start in count(first + AHEAD, AHEAD):
            for found in pool.map(lambda number: entry_at(store, trust, number), range(start, start + AHEAD)):
                if found is None:
                    return
                yield found


def entry_at(store: Store, trust: TrustRoot, sequence: int) -> Entry | None:
    """`read_entry`, or None where there is none."""
    try:
        return read_entry(store, trust, sequence)
    except KeyError:
        return None


def _end(settings: Settings) -> Entry | None:
    store, trust = open_store(settings), gate_key(settings)[1]
    last = _left(settings, store, trust)
    for entry in following(store, trust, last):
        last = entry
    return last


def _dated(settings: Settings, store: Store, last: Entry | None, now: datetime) -> datetime:
    theirs = check_clock(store, now)
    if last is None:
        return now
    left = as_time(last.issued, "issued")
    moment = not_before(last, now)
    if theirs is None and now > left + timedelta(days=1):
        most = load_policy(settings.policy).ledger.max_quiet_days
        if now > left + timedelta(days=most):
            raise WrongClock(
                f"expected a clock within {most} days of the ledger's last entry, of {last.issued}, got "
                f"{time_text(now)}; set it right, or raise the policy's ledger.max_quiet_days"
            )
    return moment


def _number(last: Entry | None) -> int:
    return last.sequence if last else 0


def _signed(
    key: Ed25519PrivateKey, last: Entry | None, kind: str, subject: Mapping[str, Any], once: str | None, now: datetime
) -> bytes:
    predicate = {
        "sequence": _number(last) + 1,
        "previous": last.sha256 if last else START,
        "kind": kind,
        # the first entry names its ledger: two of one gate may begin with the same decision in the same second
        "subject": dict(subject) if last else {**subject, "begun": secrets.token_hex(16)},
        "once": once,
        "issued": time_text(now),
    }
    return canonical_json(sign_statement(LEDGER, predicate, key))


def _entry(data: bytes) -> Entry:
    said = claimed(LEDGER, dsse.read_envelope(data))
    fields = as_object(said, {"sequence", "previous", "kind", "subject", "once", "issued"}, "a ledger entry")
    sequence, subject, once = fields["sequence"], fields["subject"], fields["once"]
    if not isinstance(sequence, int) or not isinstance(subject, dict) or not isinstance(once, str | None):
        raise Denied(f"expected a ledger entry, got {fields!r:.200}; restore the ledger")
    return Entry(
        sequence,
        as_text(fields["kind"], "kind"),
        subject,
        fields["issued"],
        as_sha256(fields["previous"], "previous"),
        once,
        hashlib.sha256(data).hexdigest(),
    )


def _memory(settings: Settings) -> Path:
    return settings.home / "ledger-head.json"

"""Leases in the store: at most one worker, on whatever machine, vets a submission at a time.

A lease is renewed while its work lasts. One that ran out, or whose holder on this very machine is no longer alive, can
be taken by another; a process that lost its lease stops before its verdict. Machines need the same `lease_seconds`, and
clocks that agree to a fraction of it. What none of them can have written, such as a lease that runs for years, is none.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tasks.settings import Settings
from tasks.store.base import Changed, Store
from tasks.store.open import open_store
from vetgate.digest import canonical_json
from vetgate.errors import Denied, StoreError
from vetgate.trust.dsse import MAX_CLOCK_SKEW
from vetgate.trust.strict_json import as_object, parse

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0
# more than any number of a process, or of attempts, more characters than a host's name has, and the year 9999
MOST, LONGEST_HOST, FAR = 2**31, 1000, 253402300800.0


class LeaseHeld(StoreError):
    """Another process is at work on it."""

    code = "lease-held"


class Lost(StoreError):
    """The lease ran out and another worker took it."""

    code = "lease-lost"


@dataclass(frozen=True)
class Lease:
    """Who works on what until when, in seconds since the epoch; `done` says that it ended, and then `until` when.

    `attempt` counts from 1 and begins anew once an attempt has succeeded.
    """

    holder: str
    host: str
    pid: int
    born: str
    attempt: int
    until: float
    done: bool = False

    def live(self, now: float) -> bool:
        """Whether its holder may still be at work."""
        if self.done or now >= self.until:
            return False
        return self.host != _host() or _birth(self.pid) == self.born


def read_lease(
    store: Store, work: str, seconds: int, now: float, wrong: Callable[[str], object] = logger.warning
) -> Lease | None:
    """The lease on a piece of work, live or not, or None; `seconds` is how long one runs.

    `wrong` is told of what is kept there and can be none, which counts as none: the next worker replaces it.
    """
    try:
        return _read(store.read(_key(work)), work, seconds, now)
    except KeyError:
        return None
    except Denied as error:
        wrong(str(error))
        return None


@contextmanager
def leased(settings: Settings, work: str, *, wait: float = 0.0) -> Iterator[Holding]:
    """Hold the lease on `work`, such as a SHA-256; raises LeaseHeld if another's is live after `wait` seconds."""
    store = open_store(settings)
    holding = Holding(store, work, *_taken(store, work, settings.lease_seconds, wait), settings.lease_seconds)
    holding.start()
    succeeded = False
    try:
        yield holding
        succeeded = True
    finally:
        holding.end(succeeded)


def _taken(store: Store, work: str, seconds: int, wait: float) -> tuple[Lease, str]:
    until = time.monotonic() + wait
    while True:
        now = time.time()
        old, etag = None, None
        try:
            data, etag = store.read_tagged(_key(work))
            old = _read(data, work, seconds, now)
        except KeyError:
            pass
        except Denied as error:
            logger.warning("%s", error)
        if old is None or not old.live(now):
            own = _own(1 if old is None else min(old.attempt + 1, MOST), now + seconds)
            try:
                if etag is not None:
                    return own, store.replace(_key(work), _bytes(own), if_match=etag)
                if store.create(_key(work), _bytes(own)):
                    return own, store.etag(_key(work))
            except Changed:
                pass  # another was faster; hear what it says
        if time.monotonic() >= until:
            who = f"{old.host}, process {old.pid}" if old is not None else "another"
            raise LeaseHeld(f"expected {work} to be free, got a vetting by {who} at work on it; wait for its verdict")
        time.sleep(POLL_SECONDS)


class Holding(threading.Thread):
    """A lease that is held, and renewed until it is ended."""

    def __init__(self, store: Store, work: str, lease: Lease, etag: str, seconds: int) -> None:
        super().__init__(name="vetgate-lease", daemon=True)
        self._store, self._work, self._lease, self._etag, self._seconds = store, work, lease, etag, seconds
        self._ended, self._guard = threading.Event(), threading.Lock()
        self._lost = False

    @property
    def attempt(self) -> int:
        """Which attempt this is since the last that succeeded."""
        return self._lease.attempt

    def check(self) -> None:
        """Raise Lost when another process took the lease: what it finds counts, and nothing more may be written."""
        self._write(replace(self._lease, until=time.time() + self._seconds))
        if self._lost:
            raise Lost(f"expected to hold the lease on {self._work} to the end, another has taken it; see its result")

    def run(self) -> None:
        while not self._ended.wait(self._seconds / 3) and not self._lost:
            self._write(replace(self._lease, until=time.time() + self._seconds))

    def end(self, succeeded: bool) -> None:
        """Stop renewing and give the lease back; the next process after a failure counts on."""
        self._ended.set()
        self.join()
        attempt = 0 if succeeded else self._lease.attempt
        self._write(replace(self._lease, until=time.time(), done=True, attempt=attempt))

    def _write(self, lease: Lease) -> None:
        with self._guard:
            try:
                if not self._lost:
                    self._etag = self._store.replace(_key(self._work), _bytes(lease), if_match=self._etag)
            except Changed:
                self._lost = True
            except StoreError:
                return  # a store that is away for a moment; the lease runs out if it stays away


def _own(attempt: int, until: float) -> Lease:
    return Lease(uuid.uuid4().hex, _host(), os.getpid(), _birth(os.getpid()) or "", attempt, until)


def _host() -> str:
    """Where process numbers mean the same: this machine since its last start, and on it this process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not (boot.exists() and namespace.is_symlink()):
        return uuid.uuid4().hex  # nothing is known of others: their leases count until they run out
    return f"{socket.gethostname()}/{boot.read_text().strip()}/{os.readlink(namespace)}"


def _birth(pid: int) -> str | None:
    """When a process of this machine started, in ticks; None when there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _read(data: bytes, work: str, seconds: int, now: float) -> Lease:
    """The lease in these bytes; raises Denied for what no worker of this installation can have written."""
    what = _key(work)
    try:
        fields = as_object(parse(data, what), Lease.__dataclass_fields__, what)
    except Denied as error:
        raise Denied(f"expected a lease in {what}, got something else ({error!s:.200}); remove it") from error
    for name, value in fields.items():
        if not _possible(name, value):
            raise Denied(f"expected a lease in {what}, got {name} {value!r:.80}; remove it")
    latest = now + seconds + MAX_CLOCK_SKEW.total_seconds()
    if fields["until"] > latest:
        raise Denied(
            f"expected a lease of {seconds} seconds in {what}, got one that is to last {fields['until'] - now:.0f}; "
            "remove it, and set the clock of its host right"
        )
    return Lease(**fields)


def _possible(name: str, value: object) -> bool:
    match name:
        case "holder" | "host" | "born":
            return isinstance(value, str) and len(value) <= LONGEST_HOST and value.isprintable()
        case "done":
            return isinstance(value, bool)
        case "until":
            # an integer may have more digits than a float can hold
            return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < FAR
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


def _bytes(lease: Lease) -> bytes:
    return canonical_json(asdict(lease))


def _key(work: str) -> str:
    return f"leases/{work}.json"

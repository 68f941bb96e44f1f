"""Leases, on each kind of store: one worker at a time, and what was abandoned is taken over."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.lease import LeaseHeld, Lost, leased, read_lease
from tasks.store.open import open_store

FORK = multiprocessing.get_context("fork")
WORK = "a" * 64


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", lease_seconds=30)


def test_a_second_worker_is_told_who_is_at_work(settings: Settings) -> None:
    with leased(settings, WORK), pytest.raises(LeaseHeld, match=f"process {os.getpid()}"), leased(settings, WORK):
        pass


def test_a_second_worker_may_wait(settings: Settings) -> None:
    with leased(settings, WORK):
        alarms: list[int] = []

        def wait() -> None:
            with leased(settings, WORK, wait=20) as mine:
                alarms.append(mine.attempt)

        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.3)
        assert not alarms
    waiter.join(timeout=20)
    assert alarms == [1]


def test_attempts_count_until_one_succeeds(settings: Settings) -> None:
    for attempt in (1, 2):
        with pytest.raises(RuntimeError), leased(settings, WORK) as held:
            assert held.attempt == attempt
            raise RuntimeError
    with leased(settings, WORK) as held:
        assert held.attempt == 3
    with leased(settings, WORK) as held:
        assert held.attempt == 1


def test_what_a_killed_worker_of_this_machine_held_is_free_at_once(settings: Settings) -> None:
    def die() -> None:
        with leased(settings, WORK):
            os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=die)
    child.start()
    child.join()
    store = open_store(settings)
    left = read_lease(store, WORK, 30, time.time())
    assert left is not None and left.until > time.time() and not left.live(time.time())
    with leased(settings, WORK) as held:
        assert held.attempt == 2


def test_a_lease_is_renewed_while_the_work_lasts(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", lease_seconds=1)
    with leased(settings, WORK) as held:
        first = read_lease(open_store(settings), WORK, 1, time.time())
        time.sleep(1.2)
        later = read_lease(open_store(settings), WORK, 1, time.time())
        held.check()
    assert first is not None and later is not None and later.until > first.until and later.holder == first.holder


def test_a_process_that_lost_its_lease_may_not_go_on(settings: Settings, store: Store) -> None:
    settings = settings.model_copy(update={"store": store_place(store), "s3_endpoint": endpoint(store)})
    with leased(settings, WORK) as held:
        held.check()
        data, etag = store.read_tagged(f"leases/{WORK}.json")
        store.replace(f"leases/{WORK}.json", data.replace(b'"attempt":1', b'"attempt":2'), if_match=etag)
        with pytest.raises(Lost):
            held.check()
    taken = read_lease(store, WORK, 30, time.time())
    assert taken is not None and taken.attempt == 2 and not taken.done


def test_of_many_workers_one_at_a_time_is_at_work(settings: Settings) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with leased(settings, WORK, wait=60):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert most == [1] * 6


YEAR = 365 * 86400.0


def laid(**said: Any) -> bytes:
    """A lease that somebody on another host wrote, good for a moment."""
    fields = {"holder": "x", "host": "elsewhere", "pid": 1, "born": "1", "attempt": 1, "done": False}
    return json.dumps({**fields, "until": time.time() + 20, **said}).encode()


NO_LEASES = [
    b"",
    b"junk",
    b"[]",
    b"null",
    b"{}",
    laid(until="x"),
    laid(until=None),
    laid(until=True),
    laid(until=-1),
    laid(until=1e300),
    laid(until=10**400),
    laid(until=0).replace(b'"until": 0', b'"until": 1e400'),
    laid(until=0).replace(b'"until": 0', b'"until": NaN'),
    laid(until=time.time() + 95 * YEAR),
    laid(until=time.time() + YEAR, done=True),
    laid(attempt="2"),
    laid(attempt=1.5),
    laid(attempt=-1),
    laid(attempt=10**30),
    laid(host=["a"]),
    laid(host="a\x1b[2J"),
    laid(pid="1"),
    laid(done="no"),
    laid(more=1),
]


@pytest.mark.parametrize("data", NO_LEASES)
def test_what_no_worker_can_have_written_is_no_lease_and_is_named(settings: Settings, data: bytes) -> None:
    store = open_store(settings)
    store.create(f"leases/{WORK}.json", data)
    named: list[str] = []
    assert read_lease(store, WORK, settings.lease_seconds, time.time(), named.append) is None
    (error,) = named
    assert f"leases/{WORK}.json" in error and "remove it" in error
    with leased(settings, WORK) as held:
        assert held.attempt == 1
        held.check()
        # it has been replaced
        assert read_lease(store, WORK, settings.lease_seconds, time.time(), named.append) is not None
    assert len(named) == 1


@pytest.mark.parametrize("seconds", [25, 30, 30 + 4 * 60])
def test_a_lease_of_a_clock_a_little_ahead_is_one(settings: Settings, seconds: float) -> None:
    open_store(settings).create(f"leases/{WORK}.json", laid(until=time.time() + seconds))
    with pytest.raises(LeaseHeld, match="elsewhere"), leased(settings, WORK):
        pass


def store_place(store: Store) -> str:
    return store.url("x").removesuffix("/x").removeprefix("file://")


def endpoint(store: Store) -> str | None:
    return str(store._s3.meta.endpoint_url) if hasattr(store, "_s3") else None

"""What is served is covered, is followed where it moves, and is given up as soon as nothing covers it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from flows.service.scoring.current import EARLY_SECONDS, Current, Served
from tests.guarding import served
from vetgate.errors import Denied, Stale, StoreError, WrongClock
from vetgate.trust.keys import utc_now


class Production:
    """What registry and gate would say: which version there is and until when, or an error; and a clock."""

    def __init__(self) -> None:
        self.now = utc_now()
        self.there = replace(served(), until=self.now + timedelta(hours=1))
        self.error: Exception | None = None
        self.unloaded: Exception | None = None
        self.loads = 0

    def load(self) -> Served:
        self.loads += 1
        if wrong := self.error or self.unloaded:
            raise wrong
        return self.there

    def covered_until(self, held: Served) -> datetime | None:
        if self.error is not None:
            raise self.error
        return self.there.until if held.attestation == self.there.attestation else None

    def current(self) -> Current:
        return Current(self.load, self.covered_until, now=lambda: self.now)


@pytest.fixture
def production() -> Production:
    return Production()


@pytest.mark.parametrize("error", [Denied("no"), Stale("no"), StoreError("no"), WrongClock("no")])
def test_what_nothing_covers_is_not_served_at_all(production: Production, error: Exception) -> None:
    production.error = error
    with pytest.raises(type(error)):
        production.current()


def test_it_is_served_no_longer_than_it_is_covered(production: Production) -> None:
    current = production.current()
    assert current.get() is production.there
    production.now = production.there.until - timedelta(seconds=1)
    assert current.get() is not None
    production.now = production.there.until
    assert current.get() is None and "vet it again" in current.why


def test_a_verdict_that_is_prolonged_is_served_on_without_loading_it_again(production: Production) -> None:
    current = production.current()
    production.there = replace(production.there, until=production.now + timedelta(hours=9))
    current.ask_again()
    production.now += timedelta(hours=8)
    assert current.get() is not None and production.loads == 1


def test_a_moved_alias_is_followed(production: Production) -> None:
    current = production.current()
    production.there = replace(production.there, version="4", attestation="c" * 64)
    current.ask_again()
    found = current.get()
    assert found is not None and found.version == "4" and production.loads == 2


def test_what_is_denied_is_given_up_at_once_and_served_again_when_it_is_covered(production: Production) -> None:
    current = production.current()
    for error in (Stale("it was revoked"), WrongClock("the clock is behind"), RuntimeError("a fault of ours")):
        production.error = error
        current.ask_again()
        assert current.get() is None and current.why
        assert ("fault" not in current.why) or not isinstance(error, RuntimeError)
        production.error = None
        current.ask_again()
        assert current.get() is not None


def test_a_registry_that_cannot_be_reached_is_waited_for_until_the_end(production: Production) -> None:
    current = production.current()
    production.error = StoreError("away")
    current.ask_again()
    assert current.get() is not None
    production.now += timedelta(hours=2)
    current.ask_again()
    assert current.get() is None


@pytest.mark.parametrize("error", [StoreError("expected the guards, got none"), OSError("expected the guards")])
def test_what_another_should_take_the_place_of_is_not_served_while_that_cannot_be_loaded(
    production: Production, error: Exception
) -> None:
    current = production.current()
    production.there, production.unloaded = replace(production.there, version="2", attestation="c" * 64), error
    for _ in range(2):
        current.ask_again()
        assert current.get() is None
        assert ("expected the guards" if isinstance(error, StoreError) else "see the log") in current.why
    # the registry does not answer, which says nothing of what was served before
    production.error = StoreError("away")
    current.ask_again()
    assert current.get() is None and current.why == "away"
    production.error = production.unloaded = None
    current.ask_again()
    found = current.get()
    assert found is not None and found.version == "2"


def test_while_another_is_loaded_the_one_before_is_served_for_a_while_only(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, go = production.current(), threading.Event()
    monkeypatch.setattr("flows.service.scoring.current.LOADING_SECONDS", 0.5)
    monkeypatch.setattr(current, "_load", lambda: (go.wait(20), production.there)[1])
    before = production.there
    production.there = replace(before, version="4", attestation="c" * 64)
    asking = threading.Thread(target=current.ask_again)
    asking.start()
    assert current.get() is before
    time.sleep(0.7)
    assert current.get() is None and "got none in time" in current.why
    go.set()
    asking.join()
    assert current.get() is production.there


def test_a_clock_that_is_set_back_prolongs_nothing(production: Production) -> None:
    production.there = replace(production.there, until=production.now + timedelta(seconds=0.2))
    current = production.current()
    production.now -= timedelta(days=300)
    time.sleep(0.3)
    assert current.get() is None


def test_it_asks_by_itself_before_the_end(production: Production) -> None:
    asked = threading.Event()

    def covered_until(held: Served) -> datetime:
        asked.set()
        return production.there.until

    production.there = replace(production.there, until=production.now + timedelta(seconds=EARLY_SECONDS + 0.1))
    current = Current(production.load, covered_until, every=0.05, now=lambda: production.now)
    current.keep_asking()
    assert asked.wait(10)
    current.close()
    # five seconds at least, so that what cannot be prolonged is not asked for all the time
    assert Current(production.load, covered_until, every=60, now=lambda: production.now)._pause() == 5

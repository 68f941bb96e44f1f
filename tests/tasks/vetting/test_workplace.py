"""A workplace has a sandbox for each thread: those that run at the same time are others, those that do not are one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks.sandbox.host import Crashed, Limits
from tasks.settings import Settings
from tasks.vetting.workplace import Workplace, set_up


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    with ExitStack() as stack:
        yield set_up(Settings(home=tmp_path / "home", threads=2), stack)


def test_one_after_another_they_are_the_same_and_at_once_they_are_not(workplace: Workplace) -> None:
    with workplace.lent() as first:
        assert first is workplace.sandbox
        with workplace.lent() as second:
            assert second is not first
    with workplace.lent() as again:
        assert again is first


def test_no_more_are_lent_than_there_are(workplace: Workplace) -> None:
    def borrow() -> object:
        with workplace.lent() as sandbox:
            return sandbox

    with ThreadPoolExecutor(1) as pool:
        with workplace.lent(), workplace.lent() as second:
            waiting = pool.submit(borrow)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        assert waiting.result(timeout=10) in (second, workplace.sandbox)


def test_with_one_thread_there_is_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        assert set_up(Settings(home=tmp_path / "home", threads=1), stack).beside == ()


def test_an_abandoned_one_runs_nothing_more(workplace: Workplace) -> None:
    workplace.abandon()
    with workplace.lent() as sandbox, pytest.raises(Crashed, match="it was closed"):
        sandbox.call("describe", {})


def test_a_detector_gets_one_thread_and_else_the_limits_of_its_vetting() -> None:
    limits = Limits(cpu_seconds=7, threads=8)
    assert limits.single == Limits(cpu_seconds=7, threads=1)

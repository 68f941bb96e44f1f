"""Where work that takes longer than a second says how far it is; listeners are optional."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, float], None]
Hearer = Callable[[str], None]

_listeners: list[Listener] = []
_hearers: list[Hearer] = []


@contextmanager
def listening(listener: Listener, hearer: Hearer = lambda text: None) -> Iterator[None]:
    """Hand the listener every (what, share done in [0, 1]), and the hearer what is announced, while it lasts."""
    _listeners.append(listener)
    _hearers.append(hearer)
    try:
        yield
    finally:
        _listeners.remove(listener)
        _hearers.remove(hearer)


def announce(text: str) -> None:
    """Say something before work begins, such as how long it will take."""
    for hearer in list(_hearers):
        hearer(text)


def report_progress(what: str, fraction: float) -> None:
    """Say that this share of `what` is done."""
    for listener in list(_listeners):
        listener(what, fraction)


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """Say that a piece of work begins, and that it has ended, however it did."""
    report_progress(what, 0)
    try:
        yield
    finally:
        report_progress(what, 1)


def progress_of(what: str) -> Callable[[float], None]:
    """A callback for one piece of work."""
    return lambda fraction: report_progress(what, fraction)

"""Where work that takes longer than a second says how far it is; listeners are optional."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, float], None]
Announced = Callable[[str], None]

_listeners: list[Listener] = []
_announced: list[Announced] = []


@contextmanager
def listening(listener: Listener, announced: Announced = lambda text: None) -> Iterator[None]:
    """Call the listener with every (what, share done in [0, 1]), and `announced` with what is announced, meanwhile."""
    _listeners.append(listener)
    _announced.append(announced)
    try:
        yield
    finally:
        _listeners.remove(listener)
        _announced.remove(announced)


def announce(text: str) -> None:
    """Say something before work begins, such as how long it will take."""
    for announced in list(_announced):
        announced(text)


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

"""Where work that takes longer than a second says how far it is; nobody may be listening."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, float], None]

_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hand the listener every (what, share done in [0, 1]) while the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(what: str, fraction: float) -> None:
    """Say that this share of `what` is done."""
    for listener in list(_listeners):
        listener(what, fraction)


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Say that a piece of work begins, and that it has ended, however it did."""
    tell(what, 0)
    try:
        yield
    finally:
        tell(what, 1)


def teller(what: str) -> Callable[[float], None]:
    """A callback for one piece of work."""
    return lambda fraction: tell(what, fraction)

"""The bench on which one vetting works: a private directory and one sandbox, whose torch import starts early.

Tasks are handed JSON only, so an open bench is found by the manifest it serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.sandbox.host import Sandbox
from tasks.settings import Settings
from tasks.vetting.intake import workroom


@dataclass(frozen=True)
class Bench:
    """`given` is what the sandbox may read (besides the data splits), `made` the one place it may write."""

    given: Path
    made: Path
    sandbox: Sandbox


_open: dict[str, Bench] = {}
_spare: list[tuple[Path, ExitStack, Bench]] = []


def warm(settings: Settings) -> None:
    """Begin to set up the bench that the next vetting will take."""
    if not any(home == settings.home for home, _, _ in _spare):
        with ExitStack() as stack:
            bench = set_up(settings, stack)
            bench.sandbox.start()
            _spare.append((settings.home, stack.pop_all(), bench))


def cool() -> None:
    """Clear away the benches that no vetting took."""
    while _spare:
        _spare.pop()[1].close()


@contextmanager
def open_bench(settings: Settings, manifest_sha256: str) -> Iterator[Bench]:
    """The bench for this vetting: the warm one if there is one, else one whose sandbox starts when it is needed."""
    taken = next((entry for entry in _spare if entry[0] == settings.home), None)
    if taken is not None:
        _spare.remove(taken)
        _, stack, bench = taken
    else:
        stack = ExitStack()
        bench = set_up(settings, stack)
    with stack:
        _open[manifest_sha256] = bench
        try:
            yield bench
        finally:
            del _open[manifest_sha256]


def bench_of(manifest_sha256: str) -> Bench:
    """The open bench of this vetting."""
    return _open[manifest_sha256]


def set_up(settings: Settings, stack: ExitStack) -> Bench:
    """A bench that `stack` clears away; its sandbox starts at its first call, or when it is told to."""
    room = stack.enter_context(workroom(settings))
    given, made = room / "given", room / "made"
    splits = settings.home / "splits"
    for directory in (given, made, splits):
        directory.mkdir(mode=0o700, exist_ok=True)
    sandbox = stack.enter_context(closing(Sandbox(scratch=made, read_only=[given, splits])))
    return Bench(given, made, sandbox)

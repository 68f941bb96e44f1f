"""Inversions that are computed elsewhere: the method is run again with what is known, until nothing is missing.

A method draws its numbers from a private stream, so a second run takes the same way as the first. One that is asked
stops at the first inversion whose blocks are not all known and says which it needs (`Missing`); one that is told to
compute a single block goes there and stops with it (`Computed`). A block is named by the number of the inversion within
the run, its phase and its place: "0.1.3".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from vetgate.errors import DefenceError
from vetgate.shape import Blob


@dataclass(eq=False)
class Replay:
    """What a run is given: results of its first inversions, known blocks of the next, and the one to compute, if any.

    `start` is where that block stands, None at its beginning; `fresh` collects the inversions that became complete.
    """

    done: list[Blob] = field(default_factory=list)
    blocks: Mapping[str, Blob] = field(default_factory=dict)
    only: str | None = None
    start: Blob | None = None
    fresh: list[Blob] = field(default_factory=list)
    calls: int = 0


class Missing(Exception):
    """The run cannot go on without these blocks; each maps to where it stands, None at its beginning."""

    def __init__(self, needs: dict[str, Blob | None]) -> None:
        super().__init__(f"{len(needs)} blocks are missing")
        self.needs = needs


class Computed(Exception):
    """The one block that was wanted is computed."""

    def __init__(self, block: Blob) -> None:
        super().__init__("the block is computed")
        self.block = block


@dataclass(frozen=True, eq=False)
class Call:
    """One inversion of the run."""

    replay: Replay
    number: int

    @property
    def result(self) -> Blob | None:
        """Its result, if that is known already."""
        return self.replay.done[self.number] if self.number < len(self.replay.done) else None

    @property
    def wanted(self) -> tuple[int, int] | None:
        """Phase and place of the one block to compute; None when the run is asked. Raises DefenceError on another's."""
        if self.replay.only is None:
            return None
        number, phase, place = (int(part) for part in self.replay.only.split("."))
        if number != self.number:
            raise DefenceError(f"expected a block of inversion {self.number}, got {self.replay.only}; ask again")
        return phase, place

    def known(self, phase: int, starts: list[Blob | None]) -> list[Blob]:
        """The blocks of a phase, in order; raises Missing with those that are not known."""
        names = [f"{self.number}.{phase}.{place}" for place in range(len(starts))]
        needs = {n: start for n, start in zip(names, starts, strict=True) if n not in self.replay.blocks}
        if needs:
            raise Missing(needs)
        return [self.replay.blocks[name] for name in names]

    def finish(self, result: Blob) -> None:
        """Keep the result, which later runs need in place of the blocks."""
        self.replay.fresh.append(result)


_replay: ContextVar[Replay | None] = ContextVar("replay", default=None)


@contextmanager
def replaying(replay: Replay) -> Iterator[Replay]:
    """Inversions in this context take their blocks from `replay`."""
    token = _replay.set(replay)
    try:
        yield replay
    finally:
        _replay.reset(token)


def next_call() -> Call | None:
    """The inversion that begins now, as a part of the replay; None where everything is computed on the spot."""
    replay = _replay.get()
    if replay is None:
        return None
    replay.calls += 1
    return Call(replay, replay.calls - 1)

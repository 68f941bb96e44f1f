"""The workplace of one vetting: a private directory and its sandboxes, of which one imports torch early.

Tasks are handed JSON only, so an open workplace is found by the manifest it serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import LifoQueue

from tasks.sandbox.host import Sandbox
from tasks.settings import Settings
from tasks.vetting.intake import workroom


@dataclass(frozen=True)
class Workplace:
    """`given` is what the sandboxes may read (besides the data splits), `made` the one place `sandbox` may write.

    Those `beside` it are for detectors that run at the same time, and start when they are needed.
    """

    given: Path
    made: Path
    sandbox: Sandbox
    beside: tuple[Sandbox, ...] = ()
    _idle: LifoQueue[Sandbox] = field(default_factory=LifoQueue)

    def __post_init__(self) -> None:
        for sandbox in (*self.beside, self.sandbox):
            self._idle.put(sandbox)

    @contextmanager
    def lent(self) -> Iterator[Sandbox]:
        """A sandbox for one call, waited for while all are in use; one that was in use before goes first."""
        sandbox = self._idle.get()
        try:
            yield sandbox
        finally:
            self._idle.put(sandbox)

    def abandon(self) -> None:
        """End whatever runs inside; nothing can be called afterwards."""
        for sandbox in (self.sandbox, *self.beside):
            sandbox.close()


_open: dict[str, Workplace] = {}
_cleared_by: dict[str, ExitStack] = {}
_spare: list[tuple[Path, ExitStack, Workplace]] = []


def warm(settings: Settings) -> None:
    """Begin to set up the workplace that the next vetting will take."""
    if not any(home == settings.home for home, _, _ in _spare):
        with ExitStack() as stack:
            workplace = set_up(settings, stack)
            workplace.sandbox.start()
            _spare.append((settings.home, stack.pop_all(), workplace))


def cool() -> None:
    """Clear away the workplaces that no vetting took."""
    while _spare:
        _spare.pop()[1].close()


@contextmanager
def open_workplace(settings: Settings, manifest_sha256: str) -> Iterator[Workplace]:
    """The workplace for this vetting: the warm one if there is one, else one whose sandbox starts when it is needed."""
    taken = next((entry for entry in _spare if entry[0] == settings.home), None)
    if taken is not None:
        _spare.remove(taken)
        _, stack, workplace = taken
    else:
        stack = ExitStack()
        workplace = set_up(settings, stack)
    with stack:
        _open[manifest_sha256], _cleared_by[manifest_sha256] = workplace, stack
        try:
            yield workplace
        finally:
            del _open[manifest_sha256], _cleared_by[manifest_sha256]


def workplace_of(manifest_sha256: str) -> Workplace:
    """The open workplace of this vetting."""
    return _open[manifest_sha256]


def pass_on(settings: Settings, manifest_sha256: str) -> None:
    """Leave the open workplace of this vetting, which ends, to the one that begins next."""
    _spare.append((settings.home, _cleared_by[manifest_sha256].pop_all(), _open[manifest_sha256]))


def set_up(settings: Settings, stack: ExitStack) -> Workplace:
    """A workplace that `stack` clears away, with a sandbox for each thread of a vetting; they start when called."""
    room = stack.enter_context(workroom(settings))
    given, splits = room / "given", settings.home / "splits"
    scratches = [room / "made", *(room / f"beside-{i}" for i in range(1, settings.threads))]
    for directory in (given, splits, *scratches):
        directory.mkdir(mode=0o700, exist_ok=True)
    first, *others = (
        stack.enter_context(
            closing(
                Sandbox(
                    scratch=scratch,
                    read_only=[given, splits],
                    start_seconds=settings.start_seconds,
                    device=settings.device,
                )
            )
        )
        for scratch in scratches
    )
    return Workplace(given, scratches[0], first, tuple(others))

"""What a command writes, and what becomes of it: no character that cannot be shown, and no error, changes its outcome.

A stream of ours escapes what its encoding lacks, keeps an error of writing to itself, and says at the end what that
makes of the exit code. A console of ours shows a stranger's text as text.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from vetgate.formats.plain_text import escaped_lines

# where a stream is closed, each next file would be opened in its place; stdout must still be found unwritable then
INSTEAD = {0: os.O_RDONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}
# of our own tables, which a terminal without UTF-8 can still show
PLAINER = {"–": "-", "→": ">", "±": "~", "·": "."}


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that an encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(PLAINER.get(c, c.encode("ascii", "backslashreplace").decode()) for c in missing), error.end


codecs.register_error("plainer", _plainer)


class _Descriptor(io.FileIO):
    """A file descriptor that raises nothing: from the first error on it takes everything and keeps nothing."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, waiting where the descriptor does not block; how much was taken."""
        while self.lost is None:
            try:
                if (count := super().write(data)) is not None:
                    return count
                select.select([], [self.fileno()], [])
            except OSError as error:
                self.lost = error
        return len(data)


class Output(io.TextIOWrapper):
    """Text for a file descriptor, which stays open; what its encoding lacks is escaped."""

    def __init__(self, descriptor: int, like: Any) -> None:
        self._descriptor = _Descriptor(descriptor, "w", closefd=False)
        encoding = getattr(like, "encoding", None) or "utf-8"
        super().__init__(io.BufferedWriter(self._descriptor), encoding=encoding, errors="plainer", line_buffering=True)

    def settled(self, code: int) -> int:
        """The exit code of a command that wrote its outcome here: 2, said on stderr, where that could not be written.

        A reader that went away had what it wanted.
        """
        self.flush()
        lost = self._descriptor.lost
        if lost is None or isinstance(lost, ConnectionError):
            return code
        print(
            f"error: expected stdout to take the outcome, got {lost.strerror}; name a file on a disk with space",
            file=sys.stderr,
        )
        return 2


class PlainConsole(Console):
    """A console on which neither markup nor control characters in a text do anything."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, escaped before it is measured."""
        return super().render_str(escaped_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything, those of ready-made texts escaped as well."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped_lines(segment.text))


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """The stdout of a program, with ours as `sys.stdout` and `sys.stderr` meanwhile."""
    for descriptor, flags in INSTEAD.items():
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # the lowest that is free, which is this one
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):
            stream.flush()
    stdout, stderr = Output(1, sys.stdout), Output(2, sys.stderr)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            yield stdout
        finally:
            stdout.flush()
            stderr.flush()

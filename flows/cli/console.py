"""What a command shows: one JSON object or tables on stdout, progress on stderr, and never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vetgate.errors import VetgateError
from vetgate.shape import Blob

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, its JSON object, and how to show it to people."""

    code: int
    blob: Blob
    show: Callable[[Console], None]


def carry_out(command: Callable[[], Outcome], *, as_json: bool) -> int:
    """Run a command, print its outcome or its error, and return the exit code."""
    try:
        with _clean_stdout() as stdout:
            try:
                with _progress():
                    outcome = command()
            except (VetgateError, KeyboardInterrupt) as error:
                outcome = _refusal(error)
            except Exception as error:
                outcome = _unexpected(error)
            _print(outcome, stdout, as_json)
            return outcome.code
    except BrokenPipeError:
        return 2


def usage_error(message: str, *, as_json: bool) -> int:
    """Say what is wrong with the command line; returns 4."""
    print(f"error: {message}\nsee: vetgate --help", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message, "exit_code": 4, "code": "usage"}))
    return 4


def _refusal(error: BaseException) -> Outcome:
    code, kind = (error.exit_code, error.code) if isinstance(error, VetgateError) else (130, "interrupted")
    message = str(error) or "interrupted; what was finished is kept, run the same command to go on"
    return _failed(code, message, kind)


def _unexpected(error: Exception) -> Outcome:
    where = _save_traceback()
    first = (str(error).splitlines() or [""])[0]
    return _failed(2, f"unexpected {type(error).__name__}: {first}; the traceback is in {where}", "unexpected")


def _failed(code: int, message: str, kind: str) -> Outcome:
    print(f"error: {message}", file=sys.stderr)
    return Outcome(code, {"error": message, "exit_code": code, "code": kind}, lambda console: None)


def _save_traceback() -> Path | str:
    home = Path(os.environ.get("VETGATE_HOME") or ".vetgate")
    for folder in (home / "logs", Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"vetgate-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
            file.write_text(traceback.format_exc())
            return file
    return "no file, since none could be written"


def _print(outcome: Outcome, stdout: TextIO, as_json: bool) -> None:
    if as_json:
        print(json.dumps(outcome.blob, allow_nan=False), file=stdout, flush=True)
        return
    from rich.console import Console

    # what is not a terminal has no width of its own, and a table cut off says nothing
    outcome.show(Console(file=stdout, highlight=False, width=None if stdout.isatty() else 160))
    stdout.flush()


@contextlib.contextmanager
def _clean_stdout() -> Iterator[TextIO]:
    """The real stdout; meanwhile whatever libraries and children print there goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(saved, "w") as stdout:
        try:
            yield stdout
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)


@contextlib.contextmanager
def _progress() -> Iterator[None]:
    """A bar on stderr for everything that tells how far it is; a line when it is done where no terminal shows bars."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from tasks.progress import listening

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    bars = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal, transient=True)
    running: dict[str, TaskID] = {}
    since: dict[str, float] = {}

    def show_progress(what: str, fraction: float) -> None:
        since.setdefault(what, time.monotonic())
        if what not in running:
            running[what] = bars.add_task(what, total=1.0)
        bars.update(running[what], completed=fraction)
        if fraction >= 1:
            bars.remove_task(running.pop(what))
            seconds = time.monotonic() - since.pop(what)
            if seconds >= 1:
                console.print(f"  {what}, {seconds:.0f} s")

    with bars, listening(show_progress, lambda text: console.print(f"  {text}")):
        yield

"""What a command shows: one JSON object or tables on stdout, progress on stderr, and never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.terminal import Output, PlainConsole, standard_streams
from tasks.environment import settle
from tasks.program import plain_logs
from vetgate.errors import VetgateError
from vetgate.formats.plain_text import escaped_lines, without_secrets
from vetgate.shape import Blob

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, its JSON object, and how to show it to people."""

    code: int
    blob: Blob
    show: Callable[[Console], None]


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line from its arguments to its exit code, which says what the documentation says in every case."""
    settle()
    with standard_streams() as stdout:
        plain_logs()
        as_json = "--json" in arguments
        try:
            code = app(arguments, prog_name="vetgate", standalone_mode=False)
        except typer.TyperException as error:
            code = _said(_failed(4, error.format_message(), "usage", "see: vetgate --help"), stdout, as_json)
        except BaseException as error:
            code = _said(_outcome_of(error), stdout, as_json)
        return stdout.settled(code if isinstance(code, int) else 0)


def carry_out(command: Callable[[], Outcome], *, as_json: bool) -> int:
    """Run a command, print its outcome or its error, and return the exit code."""
    with _clean_stdout() as stdout:
        try:
            with _progress():
                outcome = command()
        except BaseException as error:
            # a library that gives up by SystemExit or a signal's exception must not end us with its 1, a verdict
            outcome = _outcome_of(error)
        return stdout.settled(_said(outcome, stdout, as_json))


def json_text(blob: Blob) -> str:
    """A JSON object on one line of ASCII without controls, and without passwords in URLs."""
    # between two texts there is always a space, which none of these passwords has
    return without_secrets(json.dumps(blob, allow_nan=False).replace("\x7f", "\\u007f"))


def _outcome_of(error: BaseException) -> Outcome:
    if isinstance(error, VetgateError):
        return _failed(error.exit_code, str(error), error.code)
    if isinstance(error, KeyboardInterrupt):
        message = "interrupted; what was finished is kept, run the same command to go on"
        return _failed(130, message, "interrupted")
    where = _save_traceback()
    first = (str(error).splitlines() or [""])[0]
    return _failed(2, f"unexpected {type(error).__name__}: {first}; the traceback is in {where}", "unexpected")


def _failed(code: int, message: str, kind: str, *more: str) -> Outcome:
    message = escaped_lines(message)
    print("\n".join([f"error: {message}", *more]), file=sys.stderr)
    return Outcome(code, {"error": message, "exit_code": code, "code": kind}, lambda console: None)


def _save_traceback() -> Path | str:
    home = Path(os.environ.get("VETGATE_HOME") or ".vetgate")
    for folder in (home / "logs", Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"vetgate-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
            file.write_text(escaped_lines(traceback.format_exc()), "utf-8")
            return file
    return "no file, since none could be written"


def _said(outcome: Outcome, stdout: Output, as_json: bool) -> int:
    """Print an outcome; its exit code, or that of the error that keeps it from being shown."""
    try:
        if as_json:
            print(json_text(outcome.blob), file=stdout)
        else:
            # what is not a terminal has no width of its own, and a table cut off says nothing
            outcome.show(PlainConsole(file=stdout, width=None if stdout.isatty() else 160))
    except BaseException as error:
        return _outcome_of(error).code
    return outcome.code


@contextlib.contextmanager
def _clean_stdout() -> Iterator[Output]:
    """The real stdout; meanwhile whatever libraries and children print there goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield Output(saved, sys.stdout)
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def _progress() -> Iterator[None]:
    """A bar on stderr for everything that tells how far it is; a line when it is done where no terminal shows bars."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from tasks.progress import listening

    console = PlainConsole(stderr=True)
    name = TextColumn("{task.description:<32}", markup=False)
    columns = (name, BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
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

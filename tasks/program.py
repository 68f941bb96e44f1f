"""What every program of ours has in common: plain lines in its log, and an exit code that means what is documented.

Python ends with 1 for whatever a program was not prepared for, and 1 is a verdict: FAIL, or denied.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable

from vetgate.errors import VetgateError
from vetgate.formats.plain_text import escaped_lines


class PlainRecord(logging.LogRecord):
    """A line of a log, whatever handler writes it: a stranger's text in it steers no terminal and forges no line."""

    def getMessage(self) -> str:
        """The message, its lines as they are; an error of ours has one."""
        return escaped_lines(super().getMessage())


def plain_logs() -> None:
    """From now on whatever this process logs is plain, tracebacks included."""
    logging.setLogRecordFactory(_record)


def ended(program: Callable[[], int | None]) -> int:
    """Run a program that is no command: its exit code, 0 where it returns none, that of its error, or 2."""
    plain_logs()
    try:
        return program() or 0
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        # uvicorn and argparse end so; 1 and 3 of theirs are no verdicts
        return 2 if error.code else 0
    except VetgateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:
        print(escaped_lines(traceback.format_exc()), file=sys.stderr, end="")
        return 2


def _record(*arguments: object, **more: object) -> logging.LogRecord:
    made = PlainRecord(*arguments, **more)  # type: ignore[arg-type]
    if made.exc_info and not made.exc_text:
        # formatters take it from here
        made.exc_text = escaped_lines("".join(traceback.format_exception(*made.exc_info)).rstrip("\n"))
    return made

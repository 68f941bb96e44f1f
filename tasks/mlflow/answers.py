"""What a registry answers, held against the form that it must have: who writes it, or poses as it, is not believed.

A single odd row is read as text that names it, so that it keeps nobody from the others; what has no form at all is an
error that names the registry.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from vetgate.errors import VetgateError

# of one answer over HTTP: beyond any registry that is in use, and far below what fills a memory
MOST_BYTES, MOST_SECONDS = 256 << 20, 600.0
MOST_PAGES = 1000


class OddAnswer(OSError, ValueError):
    """What the registry holds or answered has no sense; whoever asked says which registry that is."""


def text(value: object) -> str:
    """The value if it is a string that can be written down, else how it looks; nothing where there is none."""
    if value is None:
        return ""
    found = value if isinstance(value, str) else ascii(value)
    # JSON can name half a character, which no file, log or database takes
    return found if found.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in found) else ascii(found)


def seconds(milliseconds: object) -> float:
    """Seconds since 1970; 0, which is long ago, for what is no moment after that."""
    try:
        found = float(str(milliseconds)) / 1e3
    except ValueError:
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0


def an_object(value: object, what: str) -> dict[str, Any]:
    """The value, a JSON object; raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} as {type(value).__name__} instead of an object")
    return value


def objects(value: object, what: str) -> list[dict[str, Any]]:
    """The value, a list of JSON objects that may be left out; raises ValueError."""
    if not isinstance(value, list | None):
        raise ValueError(f"{what} as {type(value).__name__} instead of a list")
    return [an_object(item, what) for item in value or ()]


def answer_of(client: Any, method: str, path: str, **asked: Any) -> dict[str, Any]:
    """The object that a server of MLflow's API answers; raises httpx.HTTPError, or ValueError for any other answer."""
    ends = time.monotonic() + MOST_SECONDS
    data = bytearray()
    with client.stream(method, path, **asked) as answer:
        answer.raise_for_status()
        for part in answer.iter_bytes():
            data += part
            if len(data) > MOST_BYTES or time.monotonic() > ends:
                raise ValueError(f"an answer of more than {MOST_BYTES} bytes or {MOST_SECONDS:g} seconds to {path}")
    return json_object(data, f"an answer to {path}")


def json_object(data: bytes | bytearray, what: str) -> dict[str, Any]:
    """The JSON object in an answer; raises ValueError."""
    try:
        return an_object(json.loads(data), what)
    except (RecursionError, ValueError) as error:
        raise OddAnswer(f"{what} that is no JSON object: {error}") from error


def pages(ask: Callable[[str | None], tuple[Any, str | None]]) -> Iterator[Any]:
    """Every page, asked for by the token that the one before gave; raises OddAnswer where they have no end."""
    token: str | None = None
    given: set[str] = set()
    while True:
        page, token = ask(token)
        yield page
        if not token:
            return
        if token in given or len(given) >= MOST_PAGES:
            raise OddAnswer(f"a list that has no end after page {len(given) + 1}")
        given.add(token)


class Guarded:
    """A client of MLflow whose calls end in an answer or in an error that registry() knows."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def call(*args: Any, **given: Any) -> Any:
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                return found(*args, **given)
            except (VetgateError, MlflowException, SQLAlchemyError, OSError):
                raise
            except Exception as error:
                # a false answer, an odd row or a place that needs a library: MLflow ends in whatever it meets
                raise OddAnswer(f"{type(error).__name__} in {name}: {error}") from error

        return call

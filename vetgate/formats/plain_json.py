"""JSON objects that a supplier wrote: each key once, numbers that are numbers, and no larger than said."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from vetgate.errors import NotUnderstood

MAX_BYTES = 8 << 20


def read_object(data: bytes | str, what: str) -> dict[str, Any]:
    """The JSON object in UTF-8 bytes or text; raises NotUnderstood for anything else."""
    if len(data) > MAX_BYTES:
        raise NotUnderstood(f"expected {what} of at most {MAX_BYTES} bytes, got {len(data)}; shorten it")
    try:
        value = parse(data.decode() if isinstance(data, bytes) else data)
    except (ValueError, RecursionError) as error:
        raise NotUnderstood(f"expected {what} in plain JSON, got {str(error)[:200]}; save the model again") from error
    if not isinstance(value, dict):
        raise NotUnderstood(f"expected {what} to be a JSON object, got {type(value).__name__}; save the model again")
    return value


def parse(text: str) -> Any:
    """The value of a JSON text; raises ValueError for a key given twice and for NaN and the infinities."""
    return json.loads(text, object_pairs_hook=each_key_once, parse_constant=_no_number)


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, as a decoder's hook takes it; raises ValueError for a key given twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key given twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no number of JSON")

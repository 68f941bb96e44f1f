"""JSON that means one thing only, and the few shapes that signed documents are made of; anything else is Denied."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from vetgate.errors import Denied

MAX_BYTES = 8 << 20
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")


def parse(data: bytes, what: str) -> Any:
    """The JSON value in UTF-8 bytes; raises Denied on a key given twice, NaN, trailing bytes or anything malformed."""
    if len(data) > MAX_BYTES:
        raise Denied(f"expected {what} of at most {MAX_BYTES} bytes, got {len(data)}; it is none of ours")
    try:
        return json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Denied(f"expected {what} in plain JSON, got {error}; fetch it again") from error


def as_object(value: Any, keys: Collection[str], what: str) -> dict[str, Any]:
    """The value, an object with exactly these keys."""
    if not isinstance(value, dict) or set(value) != set(keys):
        got = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise Denied(f"expected {what} with exactly the keys {sorted(keys)}, got {got}; fetch it again")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """The value, a list."""
    if not isinstance(value, list):
        raise Denied(f"expected {what} to be a list, got {type(value).__name__}; fetch it again")
    return value


def as_text(value: Any, what: str) -> str:
    """The value, a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise Denied(f"expected {what} to be a string, got {value!r:.80}; fetch it again")
    return value


def as_sha256(value: Any, what: str) -> str:
    """The value, 64 lower-case hexadecimal digits."""
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise Denied(f"expected {what} to be a SHA-256 in hex, got {value!r:.80}; fetch it again")
    return value


def as_base64(value: Any, what: str) -> bytes:
    """The bytes of a string in standard base64, padded, with nothing beside and no second spelling."""
    try:
        data = base64.b64decode(as_text(value, what), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Denied(f"expected {what} in base64, got {error}; fetch it again") from error
    if base64.b64encode(data).decode() != value:
        raise Denied(f"expected {what} in canonical base64, got another spelling; fetch it again")
    return data


def as_time(value: Any, what: str) -> datetime:
    """The moment of a string such as 2026-11-23T09:30:00Z."""
    try:
        if not _TIME.fullmatch(as_text(value, what)):
            raise ValueError("not of the form 2026-11-23T09:30:00Z")
        return datetime.strptime(value, TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError as error:
        raise Denied(f"expected {what} to be a time in UTC, got {value!r:.80} ({error}); fetch it again") from error


def time_text(moment: datetime) -> str:
    """The string that `as_time` reads, whole seconds in UTC; raises ValueError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("expected a moment with a time zone")
    return moment.astimezone(UTC).strftime(TIME_FORMAT)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key given twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"the number {constant}")

"""How numbers are written in Markdown tables: "–" where there is none, and intervals in brackets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vetgate.shape import Blob

NONE = "–"


def grid(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals."""
    return NONE if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def small(value: float | None) -> str:
    """A p-value to two significant digits."""
    return NONE if value is None or math.isnan(value) else f"{value:.2g}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share in per cent."""
    return NONE if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def count(found: Blob) -> str:
    """So many of so many, and the share."""
    return f"{found['count']} of {found['n']} ({percent(found['count'] / found['n'], 1)})" if found["n"] else NONE


def estimate(found: Blob | None) -> str:
    """A value with its interval."""
    return _between(found, lambda value: number(value, 3))


def share(found: Blob | None) -> str:
    """A share in per cent with its interval."""
    return _between(found, percent)


def _between(found: Blob | None, words: Callable[[float], str]) -> str:
    if found is None or found["value"] is None or math.isnan(found["value"]):
        return NONE
    return f"{words(found['value'])} [{words(found['low'])}, {words(found['high'])}]"

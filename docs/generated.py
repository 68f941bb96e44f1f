"""Write a generated page, or say whether the one in the repository is up to date."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def settle(page: Path, text: str, arguments: Sequence[str]) -> int:
    """Write `text` to `page`; with --check, leave it alone and return 1 when it differs."""
    if "--check" not in arguments:
        page.write_text(text)
        return 0
    if page.exists() and page.read_text() == text:
        return 0
    print(f"{page.name} is stale; run `make docs` and commit it", file=sys.stderr)
    return 1

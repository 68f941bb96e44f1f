"""The file of results that a benchmark writes row by row, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def rows_in(file: Path) -> list[dict[str, Any]]:
    """The rows of a file, an array with one a line; none where it is not there."""
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return found


def add_row(file: Path, row: Mapping[str, Any]) -> None:
    """Write a file with one row more, whole or not at all."""
    lines = ",\n".join(json.dumps(one) for one in [*rows_in(file), row])
    partial = file.with_name(f".{file.name}.part")
    partial.write_text(f"[\n{lines}\n]\n")
    os.replace(partial, file)

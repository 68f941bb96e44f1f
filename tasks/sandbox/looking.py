"""The operation by which `vetgate init` looks at a model file: read in the sandbox, nothing of it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vetgate.formats.inspect import read_member
from vetgate.formats.readers import formats
from vetgate.formats.template import look


def look_at(payload: Mapping[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:
    """What `model` in `directory` says of itself, with the files beside it that may belong to it."""
    directory, model = Path(payload["directory"]), payload["model"]
    beside = [path.name for path in directory.iterdir() if path.is_file() and path.name != model]
    wanted = [name for name in beside if any(each.belongs(name) for each in formats().values())]
    return look({name: read_member(directory, name) for name in [model, *wanted]}, model)


OPS = {"look": look_at}

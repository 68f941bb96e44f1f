"""An MLflow model's own description: data only, or code that mlflow.pyfunc imports."""

from __future__ import annotations

import re
from typing import Any

from vetgate.scan.inspection import Place
from vetgate.scan.rules import CORRUPT, LIMIT, PYFUNC_CODE
from vetgate.scan.source import BrokenFileError

FILE = "MLmodel"
MAX_BYTES = 1 << 20
# a flavor's own loader reads files that are scanned by themselves; pyfunc's runs a Python model
LOADER = re.compile(r"mlflow\.(?!pyfunc|projects|models)[a-z_]+")


def read_mlmodel(text: str, at: Place) -> None:
    """Inspect an MLmodel file."""
    import yaml

    from vetgate.formats.yaml12 import load_plain

    if len(text) > MAX_BYTES:
        raise BrokenFileError(LIMIT, f"{len(text)} characters")
    try:
        described = load_plain(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise BrokenFileError(CORRUPT, f"a description that cannot be read: {error}") from error
    if not isinstance(described, dict) or not isinstance(described.get("flavors"), dict):
        raise BrokenFileError(CORRUPT, "a description without flavors")
    for flavor in described["flavors"].values():
        if isinstance(flavor, dict):
            check_flavor(flavor, at, known=True)


def check_flavor(flavor: dict[str, Any], at: Place, *, known: bool = False) -> None:
    """Tell of code that a flavor brings; of any object, unless it is `known` to be one, only by its loader."""
    loader = flavor.get("loader_module")
    if loader is not None and (not isinstance(loader, str) or not LOADER.fullmatch(loader)):
        at.found(PYFUNC_CODE, f"loader_module: {loader}")
    for key in ("code", "python_model", "model_code_path", "code_paths") if known or loader is not None else ():
        if flavor.get(key) not in (None, "", []):
            at.found(PYFUNC_CODE, f"{key}: {flavor[key]}")

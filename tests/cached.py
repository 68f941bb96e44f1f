"""What tests train or migrate, made once and then copied: a cache outside the checkout, one folder an entry.

An entry is named by a digest of all that it follows from: a recipe, the code that makes it and whatever that imports
of ours, and the libraries behind it. A changed one makes a new entry. An entry appears whole or not at all, with the
SHA-256 of its files, and one whose files no longer fit is made anew. It lies in VETGATE_TEST_CACHE, or else in
vetgate/tests below XDG_CACHE_HOME or ~/.cache; removing it costs nothing but time.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vetgate", "tasks", "flows", "tests")
LIBRARIES = ("torch", "numpy", "scikit-learn", "safetensors")
SUMS = "sha256.json"
KEPT_DAYS = 30


def place() -> Path:
    """Where the entries lie."""
    named = os.environ.get("VETGATE_TEST_CACHE")
    return (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vetgate", "tests").expanduser()
    )


def made_once(
    name: str,
    into: Path,
    make: Callable[[Path], object],
    *,
    code: Iterable[Path],
    recipe: Any = None,
    libraries: Iterable[str] = LIBRARIES,
) -> Path:
    """A folder of one's own, `into`, with the files that `make` writes into the folder it is given.

    `code` are the files that make it; what they import of ours counts too. `recipe` is whatever else decides, as JSON.
    """
    digest = key(code, recipe, libraries)
    with _alone(name) as folder:
        entry = folder / f"{name}-{digest[:20]}"
        if not whole(entry):
            _make(folder, entry, name, make)
        os.utime(entry)
        _prune(folder, name)
        shutil.copytree(entry, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SUMS))
    return into


def key(code: Iterable[Path], recipe: Any, libraries: Iterable[str] = LIBRARIES) -> str:
    """The digest of all that an entry follows from."""
    versions = {library: importlib.metadata.version(library) for library in libraries}
    about = [recipe, versions, platform.python_version_tuple()[:2], platform.machine()]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for file in sorted(code_behind(code)):
        digest.update(f"{file.relative_to(ROOT)} {_tree(file)}".encode())
    return digest.hexdigest()


def code_behind(starts: Iterable[Path]) -> set[Path]:
    """These files and all of ours that they import; of a package that is imported as such, every module."""
    seen: set[Path] = set()
    todo = [start.resolve() for start in starts]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo += _imports(file)
    return seen


def whole(entry: Path) -> bool:
    """Whether an entry holds exactly the files that were written, bit for bit."""
    try:
        return bool(json.loads((entry / SUMS).read_text()) == _sums(entry))
    except (OSError, ValueError):
        return False


@contextmanager
def _alone(name: str) -> Iterator[Path]:
    """The cache, while no other process makes or takes an entry of this name."""
    folder = place()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _make(folder: Path, entry: Path, name: str, make: Callable[[Path], object]) -> None:
    # what is left of a process that was killed: the lock is ours, so no process is at work in it
    for left in (entry, *folder.glob(f".{name}-*")):
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        make(draft)
        (draft / SUMS).write_text(json.dumps(_sums(draft)))
        draft.rename(entry)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _prune(folder: Path, name: str) -> None:
    """Remove what was not used for a month."""
    for entry in folder.glob(f"{name}-*"):
        if entry.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
            shutil.rmtree(entry, ignore_errors=True)


def _sums(entry: Path) -> dict[str, str]:
    files = (path for path in sorted(entry.rglob("*")) if path.is_file() and path != entry / SUMS)
    return {str(path.relative_to(entry)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@cache
def _tree(file: Path) -> str:
    """The syntax tree of a file, without its docstrings: a reworded comment makes nothing anew."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def _imports(file: Path) -> tuple[Path, ...]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found: list[Path] = []
    for parts in (name.split(".") for name in names):
        if parts[0] in PACKAGES:
            at = ROOT.joinpath(*parts)
            # a package registers what lies in it
            found += at.glob("*.py") if len(parts) > 1 else [at / "__init__.py"]
            found += [at.with_suffix(".py"), *(ROOT.joinpath(*parts[:n]) / "__init__.py" for n in range(1, len(parts)))]
    return tuple(path for path in found if path.is_file())

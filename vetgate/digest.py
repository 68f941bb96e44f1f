"""Digests that bind results to what made them: canonical JSON, and the code that a method reaches."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from vetgate.reach import outline, without_docstrings
from vetgate.role import guard_functions

PACKAGE = Path(__file__).parent
# what runs every method: its seed, its copy of the model, what is put back afterwards
CONTRACT = ("contract", "Method.__call__")
GUARDING = [("guard.contract", f"Guard.{part}") for part in ("fit", "score", "vote", "with_cut")]
Kind = Literal["detect", "repair", "guard"]


def canonical_json(value: Any) -> bytes:
    """Sorted, unspaced UTF-8 JSON; raises ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_json(value: Any) -> str:
    """SHA-256 in hex of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def code_digest(kind: Kind, name: str, package: Path | None = None) -> str:
    """SHA-256 over the definitions that a method's numbers can depend on, and over torch's major.minor.

    Hashed are the syntax trees of the method, of what runs it, and of every vetgate definition that these reach by
    name: not where they stand, nor comments, docstrings, annotations, the method's registration or what errors are.
    `package` is another copy of vetgate. Raises FileNotFoundError for a method that is not there.
    """
    return _code_digest(kind, name, package) if package else _remembered(kind, name, PACKAGE, _written(PACKAGE))


def _code_digest(kind: str, name: str, package: Path) -> str:
    own, beside = f"{kind}.{name}", [CONTRACT]
    if kind == "guard":
        # its registration names the functions that fit it and vote
        beside = [*((own, function) for _, function in sorted(guard_functions(name, package).items())), *GUARDING]
    hashed = outline(package, [(own, name), *beside])
    release = importlib.metadata.version("torch").split(".")[:2]
    return sha256_json([hashed, release])


@lru_cache(maxsize=64)
def _remembered(kind: str, name: str, package: Path, written: Hashable) -> str:
    """The digest while no file changes: reading all of them again takes a tenth of a second."""
    return _code_digest(kind, name, package)


def _written(package: Path) -> Hashable:
    """Which modules there are, and when each was written last."""
    return tuple((str(f), s.st_mtime_ns, s.st_size) for f in sorted(package.rglob("*.py")) for s in [f.stat()])


def attack_digest(attack: str, architecture: str) -> str:
    """SHA-256 over the syntax trees of an attack, of an architecture, and of what they import from those packages.

    What they import beside these changes for reasons of its own, and seldom a trained network.
    """
    return _attack_remembered(attack, architecture, _written(PACKAGE))


@lru_cache(maxsize=512)
def _attack_remembered(attack: str, architecture: str, written: Hashable) -> str:
    starts = [PACKAGE / "attacks" / f"{attack}.py", PACKAGE / "architectures" / f"{architecture.replace('-', '_')}.py"]
    every = {file for start in starts for file in _closure(start)}
    theirs = {f for f in every if f.parent.name in ("attacks", "architectures") and f.name != "__init__.py"}
    digest = hashlib.sha256()
    for path in sorted(theirs):
        digest.update(path.relative_to(PACKAGE).as_posix().encode())
        digest.update(syntax(without_docstrings(ast.parse(path.read_text()))).encode())
    return digest.hexdigest()


def syntax(node: object) -> str:
    """A syntax tree as `ast.dump` of Python 3.11 writes it, whichever Python runs, so that digests agree on all.

    3.12 adds `type_params`, empty where nothing new is used, and 3.13 leaves empty lists out.
    """
    if isinstance(node, list):
        return f"[{', '.join(map(syntax, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    shown = []
    for name in node._fields:
        value = getattr(node, name, None)
        # an optional field has None as its class's attribute
        absent = value is None and getattr(type(node), name, ...) is None
        if not absent and (name, value) != ("type_params", []):
            shown.append(f"{name}={syntax(value)}")
    return f"{type(node).__name__}({', '.join(shown)})"


def _closure(start: Path) -> set[Path]:
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        todo += _imports(ast.parse(path.read_text()))
    return seen


def _imports(tree: ast.AST) -> list[Path]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    inside = [n.split(".")[1:] for n in names if n.split(".")[0] == PACKAGE.name]
    found = [PACKAGE.joinpath(*parts).with_suffix(".py") for parts in inside if parts]
    return [path for path in found if path.is_file()]

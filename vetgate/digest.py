"""Digests that bind results to what made them: canonical JSON, and the code of a method without its comments."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any, Literal

PACKAGE = Path(__file__).parent


def canonical_json(value: Any) -> bytes:
    """Sorted, unspaced UTF-8 JSON; raises ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_json(value: Any) -> str:
    """SHA-256 in hex of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def code_digest(kind: Literal["detect", "repair"], name: str) -> str:
    """SHA-256 over the syntax trees, docstrings left out, of a method's file and every vetgate module it imports.

    torch's major.minor is hashed too. A reworded comment or docstring voids nothing.
    """
    digest = _of_code(_closure(PACKAGE / kind / f"{name}.py"))
    digest.update(".".join(importlib.metadata.version("torch").split(".")[:2]).encode())
    return digest.hexdigest()


def attack_digest(attack: str, architecture: str) -> str:
    """SHA-256 over the syntax trees of an attack, of an architecture, and of what they import from those packages.

    What they import beside these changes for reasons of its own, and seldom a trained network.
    """
    starts = [PACKAGE / "attacks" / f"{attack}.py", PACKAGE / "architectures" / f"{architecture.replace('-', '_')}.py"]
    every = {file for start in starts for file in _closure(start)}
    theirs = {f for f in every if f.parent.name in ("attacks", "architectures") and f.name != "__init__.py"}
    return _of_code(theirs).hexdigest()


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


def _of_code(files: set[Path]) -> hashlib._Hash:
    """A hash of these files' syntax trees."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(PACKAGE).as_posix().encode())
        digest.update(syntax(_without_docstrings(ast.parse(path.read_text()))).encode())
    return digest


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


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree

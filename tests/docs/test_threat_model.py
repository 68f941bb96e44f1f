"""The threat model points to the tests that show its lines; a line without one, or with one that is gone, fails."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "threat-model.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+(?:::\w+)?)`")


def tables(page: str) -> dict[str, list[list[str]]]:
    """The rows, cell by cell, of the table below each heading that has one, without their heads."""
    found: dict[str, list[list[str]]] = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
        if rows:
            found[section.splitlines()[0]] = rows
    return found


@cache
def names_in(file: str) -> frozenset[str]:
    """The names of the tests in a file, those of a class behind the class's name."""
    body = ast.parse((ROOT / file).read_text()).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    return frozenset(functions(body)) | {f"{c.name}::{name}" for c in classes for name in functions(c.body)}


def functions(body: list[ast.stmt]) -> set[str]:
    """The tests among some definitions."""
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("file, name", sorted(set(NAMED.findall(PAGE.read_text()))))
def test_a_test_that_is_named_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file() and name in names_in(file)


def test_whatever_looks_like_a_test_is_checked() -> None:
    page = PAGE.read_text()
    assert page.count("::test_") == len(NAMED.findall(page))


def test_every_threat_and_every_right_points_to_a_test() -> None:
    found = tables(PAGE.read_text())
    assert {"Who may do what", "What each check stops"} <= set(found)
    for heading, rows in found.items():
        without = [row[0] for row in rows if not NAMED.search(row[-1])]
        assert not without, f"{heading}: no test shows {without}"


def test_what_remains_is_said() -> None:
    remains = PAGE.read_text().partition("## What remains")[2]
    assert len(re.findall(r"^- ", remains, flags=re.MULTILINE)) >= 5


def test_a_test_that_is_gone_would_be_noticed() -> None:
    assert NAMED.findall("`tests/docs/test_threat_model.py::test_gone`") == [
        ("tests/docs/test_threat_model.py", "test_gone")
    ]
    assert "test_gone" not in names_in("tests/docs/test_threat_model.py")
    assert "TestWaived::test_it_is_denied_without_any" in names_in("tests/flows/production/test_verify.py")

"""How the house is divided: no room too full, no public name twice in a room, and tests where their modules are.

A room is a folder of modules. Names that a room may hold more than once: `main`, since every program has one. In a
plugin folder, where each file is one method and offers what the others offer, neither number nor names are bounded.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("vetgate", "tasks", "flows")
PLUGINS = {
    ROOT / "vetgate" / name for name in ("detect", "repair", "guard", "attacks", "architectures", "formats/readers")
}
MOST = 16
ROOMS = sorted({path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")})
# of no one room: the whole service, what is shipped, and the pages
APART = {"benchmarks", "docs", "infra", "service"}


def modules(room: Path) -> list[Path]:
    return [path for path in sorted(room.glob("*.py")) if path.name != "__init__.py"]


def public(module: Path) -> set[str]:
    found = {
        node.name
        for node in ast.parse(module.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    return {name for name in found if not name.startswith("_") and name != "main"}


def twice(room: Path) -> dict[str, list[str]]:
    where = defaultdict(list)
    for module in modules(room):
        for name in public(module):
            where[name].append(module.name)
    return {name: files for name, files in where.items() if len(files) > 1}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("room", [r for r in ROOMS if r not in PLUGINS], ids=named)
def test_no_room_holds_more_modules_than_one_can_oversee(room: Path) -> None:
    assert len(modules(room)) <= MOST


@pytest.mark.parametrize("room", [r for r in ROOMS if r not in PLUGINS], ids=named)
def test_no_public_name_stands_twice_in_a_room(room: Path) -> None:
    assert twice(room) == {}


@pytest.mark.parametrize("room", ROOMS, ids=named)
def test_every_room_says_what_it_is_for(room: Path) -> None:
    face = room / "__init__.py"
    assert face.is_file()
    if room.name not in PACKAGES:
        assert ast.get_docstring(ast.parse(face.read_text()))


def test_every_folder_of_tests_is_that_of_a_room() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    rooms = {room.relative_to(ROOT) for room in ROOMS} | {Path()}
    assert {f for f in folders if f.parts[:1] not in [(name,) for name in APART]} <= rooms


def test_names_that_stand_twice_are_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def main(): ...\ndef put(): ...\ndef _own(): ...\n")
    (tmp_path / "two.py").write_text("def main(): ...\nclass put: ...\ndef _own(): ...\n")
    assert twice(tmp_path) == {"put": ["one.py", "two.py"]}

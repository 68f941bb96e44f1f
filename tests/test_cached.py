"""What the cache of the tests gives is what would have been made, however many ask and whatever befell an entry."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import cached
from tests.cached import KEPT_DAYS, ROOT, SUMS, code_behind, key, made_once

FORK = multiprocessing.get_context("fork")
BADNETS = ROOT / "vetgate" / "attacks" / "badnets.py"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VETGATE_TEST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir()]


def maker(calls: Path) -> Callable[[Path], None]:
    """Makes a network and a note below it, and writes down that it did."""

    def make(folder: Path) -> None:
        (folder / "below").mkdir()
        (folder / "weights").write_bytes(b"trained")
        (folder / "below" / "note").write_text("how")
        with calls.open("a") as file:
            file.write("made\n")

    return make


def test_it_is_made_once_and_everyone_gets_a_copy(tmp_path: Path, place: Path) -> None:
    make = maker(tmp_path / "calls")
    for name in ("one", "two"):
        got = made_once("net", tmp_path / name, make, code=[BADNETS])
        assert (got / "weights").read_bytes() == b"trained" and (got / "below" / "note").read_text() == "how"
        assert not (got / SUMS).exists()
        # a test that spoils its copy spoils nothing else
        (got / "weights").write_bytes(b"spoilt")
    assert (tmp_path / "calls").read_text() == "made\n" and len(entries(place)) == 1


@pytest.mark.parametrize("damage", ["altered", "shortened", "removed", "added", "no sums", "broken sums"])
def test_an_entry_that_was_damaged_is_made_anew(tmp_path: Path, place: Path, damage: str) -> None:
    make = maker(tmp_path / "calls")
    made_once("net", tmp_path / "one", make, code=[BADNETS])
    (entry,) = entries(place)
    if damage == "altered":
        (entry / "weights").write_bytes(b"Trained")
    elif damage == "shortened":
        (entry / "weights").write_bytes(b"")
    elif damage == "removed":
        shutil.rmtree(entry / "below")
    elif damage == "added":
        (entry / "more").write_bytes(b"")
    elif damage == "no sums":
        (entry / SUMS).unlink()
    else:
        (entry / SUMS).write_text("{")
    got = made_once("net", tmp_path / "two", make, code=[BADNETS])
    assert (got / "weights").read_bytes() == b"trained" and sorted(p.name for p in got.iterdir()) == [
        "below",
        "weights",
    ]
    assert (tmp_path / "calls").read_text() == "made\n" * 2


def test_what_fails_leaves_no_entry_and_what_was_killed_is_swept_away(tmp_path: Path, place: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        made_once("net", tmp_path / "one", fails, code=[BADNETS])
    assert entries(place) == [] and not (tmp_path / "one").exists()
    (place / ".net-killed").mkdir()
    made_once("net", tmp_path / "two", maker(tmp_path / "calls"), code=[BADNETS])
    assert len(entries(place)) == 1 and not (place / ".net-killed").exists()


def test_of_four_processes_one_makes_it(tmp_path: Path) -> None:
    def slow(folder: Path) -> None:
        time.sleep(0.2)
        maker(tmp_path / "calls")(folder)

    def ask(number: int) -> None:
        made_once("net", tmp_path / str(number), slow, code=[BADNETS])

    processes = [FORK.Process(target=ask, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "calls").read_text() == "made\n"
    assert all((tmp_path / str(number) / "weights").read_bytes() == b"trained" for number in range(4))


def test_another_recipe_library_or_name_is_another_entry(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = maker(tmp_path / "calls")
    made_once("net", tmp_path / "a", make, code=[BADNETS], recipe={"epochs": 1})
    made_once("net", tmp_path / "b", make, code=[BADNETS], recipe={"epochs": 2})
    made_once("other", tmp_path / "c", make, code=[BADNETS], recipe={"epochs": 1})
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version(name) + ("1" if name == "torch" else ""))
    made_once("net", tmp_path / "d", make, code=[BADNETS], recipe={"epochs": 1})
    assert len(entries(place)) == 4


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of our own, of which a test may change the code."""
    root = tmp_path / "checkout"
    for package in cached.PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cached, "ROOT", root)
    return root


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("vetgate/attacks/badnets.py", True),  # itself
        ("vetgate/contract.py", True),  # what it imports, some steps away
        ("vetgate/architectures/vgg_small.py", True),  # what a package that it imports looks up by name
        ("vetgate/verdict/policy.py", False),
    ],
)
def test_the_key_follows_the_code_that_makes_an_entry_and_nothing_else(copy: Path, file: str, changes: bool) -> None:
    start = copy / "vetgate" / "attacks" / "badnets.py"
    start.write_text(start.read_text() + "\nfrom vetgate.architectures import ARCHITECTURES\n")
    before = key([start], None)
    cached._tree.cache_clear()
    (copy / file).write_text((copy / file).read_text() + "\n# a comment\n")
    assert key([start], None) == before
    cached._tree.cache_clear()
    (copy / file).write_text((copy / file).read_text() + "\nADDED = 1\n")
    assert (key([start], None) != before) == changes


def test_a_reworded_docstring_makes_nothing_anew(copy: Path) -> None:
    start = copy / "vetgate" / "attacks" / "badnets.py"
    before = key([start], None)
    cached._tree.cache_clear()
    start.write_text(start.read_text().replace('"""', '"""Reworded. ', 1))
    assert key([start], None) == before


def test_the_code_behind_the_quick_installation_holds_its_detectors_and_its_training() -> None:
    found = {str(path.relative_to(ROOT)) for path in code_behind([ROOT / "tests" / "quick.py"])}
    assert {"vetgate/attacks/training.py", "vetgate/attacks/clean.py", "vetgate/detect/neural_cleanse.py"} <= found
    assert {"vetgate/architectures/small_cnn.py", "vetgate/inversion.py", "vetgate/contract.py"} <= found


def test_what_was_not_used_for_a_month_is_removed(tmp_path: Path, place: Path) -> None:
    make = maker(tmp_path / "calls")
    made_once("net", tmp_path / "a", make, code=[BADNETS], recipe=1)
    (old,) = entries(place)
    os.utime(old, (0, time.time() - (KEPT_DAYS + 1) * 86400))
    made_once("net", tmp_path / "b", make, code=[BADNETS], recipe=2)
    assert not old.exists() and len(entries(place)) == 1

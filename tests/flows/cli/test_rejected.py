"""`vetgate rejected` lists what guards rejected and names the page of its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli.commands import main
from tasks.rejected import keep
from tests.tasks.test_rejected import pixels, rejection


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for number in range(2):
        keep(tmp_path, rejection(number), pixels())
    keep(tmp_path, rejection(2, name="signs", said=None, said_class=None), pixels(3))
    return tmp_path


def test_as_json(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rejected", "digits", "--home", str(home), "--json"]) == 0
    blob = json.loads(capfd.readouterr().out)
    assert [row["time"] for row in blob["rejected"]] == [rejection(n).time for n in (1, 0)]
    assert all(Path(row["image"]).read_bytes().startswith(b"\x89PNG") for row in blob["rejected"])
    assert Path(blob["page"]).read_text().count("<img") == 2


def test_as_a_table_that_names_the_page(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rejected", "--home", str(home)]) == 0
    said = capfd.readouterr().out
    assert "prod.signs 1" in said and said.count("prod.digits 1") == 2 and "seven" in said
    (page,) = (line.split()[1] for line in said.splitlines() if line.startswith("pictures"))
    assert Path(page).read_text().count("<img") == 3


def test_where_nothing_was_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rejected", "--home", str(tmp_path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"rejected": [], "page": None}
    assert main(["rejected", "../x", "--home", str(tmp_path)]) == 4

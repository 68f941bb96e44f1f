from __future__ import annotations

from pathlib import Path

import pytest

from docs import methods
from vetgate.contract import DETECTORS, REPAIRS


def test_the_page_in_the_repository_is_what_the_code_says() -> None:
    assert methods.main(["--check"]) == 0, "run `make docs`"


def test_a_stale_page_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(methods, "PAGE", tmp_path / "methods.md")
    assert methods.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert methods.main([]) == 0 and methods.main(["--check"]) == 0
    methods.PAGE.write_text(methods.PAGE.read_text().replace("abs", "ABS"))
    assert methods.main(["--check"]) == 1


def test_every_method_stands_there_with_its_needs_paper_and_defaults() -> None:
    page = methods.PAGE.read_text()
    for method in [*DETECTORS.values(), *REPAIRS.values()]:
        own = page.split(f"### {method.name}\n")[1].split("\n### ")[0]
        assert method.paper in own and "- Source: " in own
        assert all(need in own for need in method.needs)
        assert all(f"| `{k}` | `{v}` |" in own for k, v in method.defaults.items())


def test_notes_of_several_lines_are_told_from_the_prose() -> None:
    prose, notes = methods.split_doc("An idea.\n\nMore of it.\n\nSource    A, B.\nDeviates  One\n          two.\n")
    assert prose == "An idea.\n\nMore of it."
    assert notes == {"Source": "A, B.", "Deviates": "One two."}

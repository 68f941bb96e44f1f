"""A demo has ended as expected only when it says so and exits so; each runs in a home and by a seed of its own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import demo

GOOD: dict[str, Any] = {
    "trojaned": {"accuracy": 0.99, "patch": 1.0},
    "repaired": {"accuracy": 0.98, "patch": 0.01},
    "unexpected": [],
}


def test_an_expected_ending_is_one_with_its_figures() -> None:
    row = demo.row_of(3, 0, json.dumps(GOOD), 61.23)
    assert row == {
        "seed": 3,
        "as_expected": True,
        "unexpected": [],
        "accuracy": [0.99, 0.98],
        "patch": [1.0, 0.01],
        "seconds": 61.2,
    }


@pytest.mark.parametrize(
    "code, printed, said",
    [
        (2, json.dumps({**GOOD, "repaired": None, "unexpected": ["expected a repair"]}), "expected a repair"),
        (2, json.dumps(GOOD), "expected exit code 0, got 2"),
        (2, json.dumps({"error": "no space left"}), "expected an ending, got exit code 2"),
        (0, "", "got exit code 0 and nothing"),
        (-9, "Traceback", "got exit code -9 and Traceback"),
        (0, "[]", "expected an ending"),
    ],
)
def test_every_other_ending_differs_and_says_how(code: int, printed: str, said: str) -> None:
    row = demo.row_of(0, code, printed, 1.0)
    assert not row["as_expected"] and said in "; ".join(row["unexpected"])


def test_each_home_is_new_and_each_seed_another() -> None:
    seen: list[tuple[Path, int, bool]] = []

    def run(home: Path, seed: int) -> tuple[int, str]:
        seen.append((home, seed, home.exists()))
        home.mkdir()
        return 0, json.dumps(GOOD)

    assert [row["seed"] for row in demo.rows(range(5, 8), run)] == [5, 6, 7]
    assert len({home for home, _, _ in seen}) == 3 and not any(there for _, _, there in seen)
    assert not any(home.exists() for home, _, _ in seen)


@pytest.mark.parametrize("ends, code", [([0, 0], 0), ([0, 2], 1)])
def test_it_exits_with_1_unless_all_ended_as_expected(
    ends: list[int], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [demo.row_of(seed, end, json.dumps(GOOD), 1.0) for seed, end in enumerate(ends)]
    monkeypatch.setattr(demo, "rows", lambda _seeds: iter(found))
    assert demo.main(["--homes", "2", "--json", str(tmp_path / "rows.json")]) == code
    assert json.loads((tmp_path / "rows.json").read_text()) == found
    assert f"{2 - code} of 2 ended as expected" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--homes", "0"], ["--first-seed", "-1"]])
def test_no_homes_are_a_usage_error_and_no_success(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(given)
    assert ended.value.code == 2 and "expected at least one home" in capsys.readouterr().err


def test_the_table_says_what_differed() -> None:
    text = io.StringIO()
    found = [demo.row_of(0, 0, json.dumps(GOOD), 60.0), demo.row_of(1, 2, json.dumps(GOOD), 59.0)]
    Console(file=text, width=160).print(demo.table(found))
    assert "as expected" in text.getvalue() and "expected exit code 0, got 2" in text.getvalue()
    assert "99.0 % → 98.0 %" in text.getvalue()

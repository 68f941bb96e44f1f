"""Results are written row by row, in the form in which they are kept."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.rows import add_row, rows_in
from vetgate.shipped import PACKAGES

RESULTS = PACKAGES / "benchmarks" / "results"


def test_a_benchmark_goes_on_with_the_file_that_it_wrote(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert rows_in(file) == []
    add_row(file, {"key": "a", "share": 0.5})
    add_row(file, {"key": "b"})
    assert rows_in(file) == [{"key": "a", "share": 0.5}, {"key": "b"}] == json.loads(file.read_text())
    assert len(file.read_text().splitlines()) == 4 and [file] == list(tmp_path.iterdir())


def test_and_with_one_that_git_holds() -> None:
    for name in ("bank-repairs", "blind-repairs", "data-inspection", "mitigation", "real-size", "runtime"):
        assert all(isinstance(row, dict) for row in rows_in(RESULTS / f"{name}.json"))

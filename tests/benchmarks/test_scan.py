"""The measurements of scanning: no mutated file ends the reader, and large files take little memory."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.scan_fuzz import fuzz, mutated, seeds_of_the_corpus
from benchmarks.scan_speed import WRITERS, measured
from benchmarks.scanners import Scanner


def test_mutated_files_end_no_reader(tmp_path: Path) -> None:
    done = fuzz(300, 7, tmp_path)
    assert (done.files, done.failed, done.restarts) == (300, 0, 0)
    assert len(done.outcomes) == 3 and done.peak_bytes < 512 << 20 and not any(tmp_path.iterdir())


def test_the_same_seed_mutates_the_same_way() -> None:
    seeds = seeds_of_the_corpus()
    one, other = ([mutated(rng, seeds) for _ in range(20)] for rng in (random.Random(1), random.Random(1)))
    assert len(seeds) > 200 and [len(data) for data in one] == [len(data) for data in other] and len(set(one)) == 20


def test_large_files_are_clean_and_take_little_memory(tmp_path: Path) -> None:
    rows = measured(40 << 20, tmp_path)
    assert [row["format"] for row in rows] == list(WRITERS)
    assert all(row["outcome"] == "clean" and row["peak_resident_bytes"] < 64 << 20 for row in rows)


def test_a_scanner_is_taken_by_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    outcomes = {}
    for code in (0, 1, 3):
        program = tmp_path / f"ends-with-{code}"
        program.write_text(f"#!/bin/sh\nexit {code}\n")
        program.chmod(0o700)
        outcomes[code] = Scanner("modelscan", program).outcome(tmp_path / "file", tmp_path)
    assert outcomes == {0: "passed", 1: "malicious", 3: "other"}

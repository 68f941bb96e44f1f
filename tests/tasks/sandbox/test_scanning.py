"""The process that scans: small, shut in, and started anew when a file ends it; links and pipes are not opened."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import time
from pathlib import Path

import psutil
import pytest

from tasks.sandbox import scanning
from tasks.sandbox.scanning import ScanWorker, files_below, scan_all
from vetgate.scan.rules import RULES
from vetgate.scan.scanned import Outcome, ScannedFile


def rules(scanned: ScannedFile) -> set[str]:
    return {RULES[finding.rule].name for finding in scanned.findings}


def test_files_are_hashed_and_judged(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.txt").write_text("text\n")
    with ScanWorker() as worker:
        first, second = scan_all(tmp_path, worker)
        assert worker.pid is not None and psutil.Process(worker.pid).memory_info().rss < 100 << 20
    assert [first.outcome, second.outcome] == [Outcome.CLEAN, Outcome.CLEAN]
    assert first.sha256 == hashlib.sha256(pickle.dumps({"a": 1})).hexdigest()
    assert second.path == str(tmp_path / "inner" / "b.txt")


def test_links_pipes_and_what_cannot_be_read_are_not_clean_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a.txt").write_text("text\n")
    given = tmp_path / "given"
    given.mkdir()
    (given / "link").symlink_to(tmp_path / "target")
    (given / "nowhere").symlink_to("nowhere")
    os.mkfifo(given / "pipe")
    assert {found.path: found.not_opened is None for found in files_below(given)} == {
        str(given / name): False for name in ("link", "nowhere", "pipe")
    }
    with ScanWorker() as worker:
        assert [rules(scanned) for scanned in scan_all(given, worker)] == [{"Link"}] * 3
        # one that took the place of a plain file after it was listed
        assert rules(worker.scan("pipe", given / "pipe")) == {"Link"}
        assert rules(worker.scan("link", given / "nowhere")) == {"Unread"}
        assert rules(worker.scan("gone", given / "gone")) == {"Unread"}
        assert rules(worker.scan("longer", Path("/proc/self/status"))) == {"Unfinished"}


def test_nothing_to_scan_is_not_clean(tmp_path: Path) -> None:
    with ScanWorker() as worker:
        (scanned,) = scan_all(tmp_path, worker)
    assert scanned.outcome is Outcome.INCONCLUSIVE and rules(scanned) == {"Unread"}


def test_a_file_that_takes_too_long_is_given_up_and_the_next_one_is_scanned(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("text\n")
    with ScanWorker() as worker:
        worker.scan("small.txt", tmp_path / "small.txt")
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        worker.seconds = 1
        begun = time.monotonic()
        late = worker.scan("small.txt", tmp_path / "small.txt")
        assert time.monotonic() - begun < 10
        worker.seconds = 30
        assert late.outcome is Outcome.INCONCLUSIVE and "more than 1 s" in late.findings[0].evidence
        assert worker.scan("small.txt", tmp_path / "small.txt").outcome is Outcome.CLEAN


def test_a_worker_that_dies_leaves_its_file_inconclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.txt").write_text("text\n")
    monkeypatch.setattr(scanning, "BOOT", "raise SystemExit(3)")
    with ScanWorker() as worker:
        scanned = worker.scan("small.txt", tmp_path / "small.txt")
    assert scanned.outcome is Outcome.INCONCLUSIVE and rules(scanned) == {"Unfinished"}


@pytest.mark.parametrize(
    "answer",
    [
        "[]",
        "{}",
        '{"size": 1, "sha256": "x", "findings": []}',
        '{"size": 1, "sha256": null, "findings": [{"rule": "VET-0"}]}',
        '{"size": 1, "sha256": null, "findings": [], "external": []}',
        '{"size": 1, "sha256": null, "findings": [], "external": {"a": [[0, -1]]}}',
    ],
)
def test_an_answer_that_is_none_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    (tmp_path / "small.txt").write_text("text\n")
    monkeypatch.setattr(scanning, "BOOT", f"import sys; sys.stdin.readline(); print({answer!r})")
    with ScanWorker() as worker:
        scanned = worker.scan("small.txt", tmp_path / "small.txt")
    assert scanned.outcome is Outcome.INCONCLUSIVE and rules(scanned) == {"Unfinished"}


def test_the_worker_runs_under_limits(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("text\n")
    with ScanWorker() as worker:
        worker.scan("small.txt", tmp_path / "small.txt")
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
        status = Path(f"/proc/{worker.pid}/status").read_text()
    assert f"Max address space         {512 << 20}" in limits and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status

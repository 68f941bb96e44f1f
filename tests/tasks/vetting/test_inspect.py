"""What the sandbox says of files, and what becomes of those that break what reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.sandbox.host import Crashed, Limits, Sandbox
from tasks.vetting.inspect import understood
from vetgate.errors import NotUnderstood

DYING = """
import os
OPS = {"inspect": lambda payload, progress: os.kill(os.getpid(), payload["signal"])}
"""


def test_files_that_break_their_reader_are_refused_and_one_that_was_killed_is_an_error(tmp_path: Path) -> None:
    ops = tmp_path / "dying.py"
    ops.write_text(DYING)
    with Sandbox(scratch=tmp_path, ops=ops, level=1) as sandbox:
        with pytest.raises(NotUnderstood, match=r"expected files that their readers survive, got a crash: .*SIGSEGV"):
            understood(sandbox, {"signal": 11}, Limits())
        with pytest.raises(Crashed, match="SIGKILL"):
            understood(sandbox, {"signal": 9}, Limits())

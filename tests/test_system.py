"""What is missing on a machine is named, with how many tests go without and what installs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import system
from tests.system import BUBBLEWRAP, IPROUTE2, NEEDS, POSTGRESQL, Need, counted, named, require

NOWHERE = Need("no-such-package", "Nothing", lambda: False)


def test_what_is_missing_is_named_at_the_start_with_the_command_that_brings_it() -> None:
    (line,) = named([BUBBLEWRAP, POSTGRESQL])
    assert "bubblewrap and PostgreSQL" in line and "SKIPPED" in line
    assert "apt-get install -y bubblewrap postgresql" in line
    assert named([]) == []


def test_at_the_end_it_is_said_how_many_tests_went_without() -> None:
    reasons = [BUBBLEWRAP.reason] * 3 + [f"Skipped: {IPROUTE2.reason}", "kubectl is not installed"]
    lines = counted([BUBBLEWRAP, IPROUTE2], reasons)
    assert lines[0].startswith("3 tests ") and lines[0].endswith("bubblewrap")
    assert lines[1].startswith("1 test ") and lines[2].endswith("apt-get install -y bubblewrap iproute2")
    assert counted([], reasons) == []


def test_a_test_that_needs_what_is_not_there_is_skipped_with_that_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match="needs Nothing: apt-get install -y no-such-package"):
        require(NOWHERE)


def test_what_ci_installs_is_what_the_suite_looks_for() -> None:
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    assert all(f" {need.package}" in script for need in NEEDS)


@pytest.mark.parametrize("parallel", [[], ["-n", "1"]], ids=["serial", "parallel"])
def test_pytest_itself_says_it(tmp_path: Path, parallel: list[str]) -> None:
    """A run of its own, on a machine that is said to lack a package."""
    (tmp_path / "conftest.py").write_text(
        "from tests import system\n"
        "lacking = system.Need('no-such-package', 'Nothing', lambda: False)\n"
        "system.NEEDS = (*system.NEEDS, lacking)\n"
        "from tests.system import pytest_report_header, pytest_terminal_summary\n"
    )
    (tmp_path / "test_it.py").write_text(
        "from tests import system\ndef test_one():\n    system.require(system.NEEDS[-1])\ndef test_two():\n    pass\n"
    )
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "pythonpath=", *parallel, "."]
    root = str(Path(system.__file__).parents[1])
    done = subprocess.run(line, cwd=tmp_path, env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}, capture_output=True)
    said = done.stdout.decode()
    assert done.returncode == 0, said + done.stderr.decode()
    assert "not on this machine: " in said and "Nothing" in said
    assert "1 test of this run skipped for want of Nothing" in said and "no-such-package" in said

"""What the suite needs of the system besides Python: it says at its start and at its end what is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Need:
    """A package as apt names it, and what the tests that need it are about."""

    package: str
    title: str
    there: Callable[[], bool]

    @property
    def reason(self) -> str:
        """Why a test is skipped where the package is not there."""
        return f"needs {self.title}: apt-get install -y {self.package}"


BUBBLEWRAP = Need("bubblewrap", "bubblewrap", lambda: shutil.which("bwrap") is not None)
POSTGRESQL = Need("postgresql", "PostgreSQL", lambda: any(Path("/usr/lib/postgresql").glob("*/bin/initdb")))
IPROUTE2 = Need("iproute2", "iproute2", lambda: shutil.which("ip") is not None)
NEEDS = (BUBBLEWRAP, POSTGRESQL, IPROUTE2)


def missing() -> list[Need]:
    """What is not there."""
    return [need for need in NEEDS if not need.there()]


def require(need: Need) -> None:
    """Skip the test that asks where the package is not there."""
    if not need.there():
        pytest.skip(need.reason)


def pytest_report_header() -> list[str]:
    """Name what is not there at the start of a run."""
    return named(missing())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at its end how many tests went without it."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for line in counted(missing(), reasons):
        terminalreporter.write_line(line, yellow=True)


def named(lacking: Iterable[Need]) -> list[str]:
    """What the suite says at its start."""
    lacking = list(lacking)
    if not lacking:
        return []
    titles = " and ".join(need.title for need in lacking)
    return [f"not on this machine: {titles}; what needs them is SKIPPED ({install(lacking)})"]


def counted(lacking: Iterable[Need], reasons: Iterable[str]) -> list[str]:
    """What it says at its end, from the reasons of the tests that were skipped."""
    reasons, lacking = list(reasons), list(lacking)
    lines = []
    for need in lacking:
        count = sum(need.reason in reason for reason in reasons)
        lines.append(f"{count} {'test' if count == 1 else 'tests'} of this run skipped for want of {need.title}")
    return [*lines, f"to run them: {install(lacking)}"] if lacking else []


def install(lacking: Iterable[Need]) -> str:
    """The command that brings what is not there."""
    return f"apt-get install -y {' '.join(need.package for need in lacking)}"

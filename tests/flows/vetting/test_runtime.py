from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.vetting import runtime
from flows.vetting.runtime import LocalServer
from vetgate.errors import StoreError


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """No server is configured, and the variables that starting one sets are as before afterwards."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("PREFECT_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a server may lie."""
    os.environ["PREFECT_HOME"] = str(tmp_path)
    return tmp_path


def started(home: Path, seconds: float) -> str:
    """What a server says that does not come up in time."""
    server = LocalServer(home, seconds)
    server.start()
    try:
        with pytest.raises(StoreError) as caught:
            server.ready()
    finally:
        server.stop()
    return str(caught.value)


def test_a_server_that_takes_long_names_its_limit_and_its_log(home: Path) -> None:
    said = started(home, 0.2)
    assert "this host is busy" in said and "VETGATE_START_SECONDS" in said and str(home / "server.log") in said


def test_a_server_that_ends_is_not_waited_for_and_names_no_limit(home: Path) -> None:
    (home / "prefect.db").mkdir()
    said = started(home, 200)
    assert "got its end with" in said and str(home / "server.log") in said and "SECONDS" not in said


def test_a_database_of_an_unknown_kind_is_such_an_end(home: Path) -> None:
    os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = "nosql://nowhere"
    assert "got its end with" in started(home, 200)


def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_server", None)
    with pytest.raises(StoreError, match=r"expected to write in /proc/nowhere.*set VETGATE_HOME"):
        runtime.start(Path("/proc/nowhere"))
    assert runtime._server is None

"""A program ends with a code that means what is documented, and its log is plain."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tasks.program import ended, plain_logs
from vetgate.errors import BadSubmission, Denied, NotUnderstood, Stale, StoreError
from vetgate.formats.plain_text import steering


@pytest.fixture(autouse=True)
def records_as_before() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


def raising(error: BaseException) -> Callable[[], int]:
    def program() -> int:
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Denied("no"), 1),
        (StoreError("away"), 2),
        (NotUnderstood("what"), 3),
        (BadSubmission("wrong"), 4),
        (Stale("old"), 5),
        (KeyboardInterrupt(), 130),
        (SystemExit(), 0),
        (SystemExit(1), 2),
        (SystemExit(3), 2),
        (SystemExit("words"), 2),
        (ZeroDivisionError(), 2),
        (ImportError("no such module"), 2),
        (BrokenPipeError(), 2),
        (MemoryError(), 2),
    ],
)
def test_only_a_refusal_ends_with_1(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(error)) == code
    if isinstance(error, Denied | StoreError):
        assert capsys.readouterr().err == f"error: {error}\n"


def test_what_a_program_returns_is_its_code() -> None:
    assert [ended(lambda: None), ended(lambda: 0), ended(lambda: 5)] == [0, 0, 5]


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\x00\x9bb", "\u202eTSENOH"])
def test_a_traceback_steers_no_terminal(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(ValueError(hostile))) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and all(steering(line) is None for line in said.split("\n"))


@pytest.mark.parametrize("hostile", ["\x1b]0;title\x07", "a\x00\x9bb", "\u202eTSENOH", "\ud800"])
@pytest.mark.parametrize("format", ["%(levelname)s %(message)s", "%(message)s"])
def test_a_stranger_s_text_in_a_log_is_plain(hostile: str, format: str) -> None:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter(format))
    logger = logging.Logger("of this test")
    logger.addHandler(handler)
    plain_logs()
    logger.warning("the supplier is %s", hostile)
    logger.error(f"and again {hostile}")
    try:
        raise ValueError(hostile)
    except ValueError:
        logger.exception("this went wrong")
    assert "the supplier is" in text.getvalue() and "Traceback" in text.getvalue()
    assert all(steering(line) is None for line in text.getvalue().split("\n"))


def test_a_service_whose_port_is_taken_ends_with_2(tmp_path, taken_port: int) -> None:
    import os

    own = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
    own |= {"VETGATE_HOME": str(tmp_path), "VETGATE_RECEIVER_PORT": str(taken_port)}
    line = [sys.executable, "-m", "flows.service.receiver"]
    assert subprocess.run(line, env=own, capture_output=True, timeout=120).returncode == 2
    wrong = own | {"VETGATE_RECEIVER_PORT": "none"}
    assert subprocess.run(line, env=wrong, capture_output=True, timeout=120).returncode == 4


@pytest.fixture
def taken_port() -> Iterator[int]:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]

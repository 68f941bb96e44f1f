"""Strangers who open connections and never finish keep no service from answering, and fill no log."""

from __future__ import annotations

import http.client
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flows.service.http.connections import MOST_OPEN, Limits
from flows.service.http.endpoints import body_of, service
from flows.service.http.serving import Server
from tests.service.running import free_ports

HEADER = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
# what a client may leave unfinished: all, a header, a body, and the next request after an answered one
UNFINISHED = {
    "nothing": b"",
    "a header": HEADER,
    "a body": HEADER + b"\r\nab",
    "a second request": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /he",
}


class Served:
    """A server with little patience, in a thread; /slow answers once it may `go`, /large more than sockets hold."""

    def __init__(self, most_open: int, seconds: float) -> None:
        self.limits, self.go = Limits(most_open, seconds), threading.Event()
        self.port = free_ports(1)[0]
        self.server = Server(service({"/slow": self.slow, "/large": self.large}), "127.0.0.1", self.port, self.limits)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    async def slow(self, request: Request) -> Response:
        body = await body_of(request, 1 << 20)
        await run_in_threadpool(self.go.wait, 20)
        return JSONResponse(len(body))

    async def large(self, request: Request) -> Response:
        return Response(bytes(32 << 20))

    def connect(self, sent: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sendall(sent)
        return connection

    def is_open(self) -> int:
        return len(self.server.server_state.connections)


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    served = Served(*getattr(request, "param", (6, 30.0)))
    served.thread.start()
    assert comes(lambda: served.server.started)
    yield served
    served.go.set()
    served.server.should_exit = True
    served.thread.join(10)


def comes(state: Callable[[], bool]) -> bool:
    """Whether it comes to be within ten seconds."""
    until = time.monotonic() + 10
    while not (reached := state()) and time.monotonic() < until:
        time.sleep(0.02)
    return reached


def healthy(port: int, within: float = 10.0) -> bool:
    """Whether it answers; that takes milliseconds, and much longer beside tests that take all processors."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=within)
    connection.request("GET", "/health")
    answer = connection.getresponse().status == 200
    connection.close()
    return answer


def is_closed(connection: socket.socket, within: float) -> bool:
    connection.settimeout(within)
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED)
def test_of_too_many_connections_those_that_wait_longest_give_way(served: Served, sent: bytes) -> None:
    with ExitStack() as held:
        every = [held.enter_context(served.connect(sent)) for _ in range(40)]
        assert healthy(served.port) and comes(lambda: served.is_open() <= 6)
        closed = [is_closed(one, 0.05) for one in every]
        assert 34 <= sum(closed) < 40
        # who had an answer in between waits from then on
        assert closed == sorted(closed, reverse=True) or sent.startswith(b"GET")


@pytest.mark.parametrize("served", [(100, 0.5)], indirect=True)
@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED)
def test_who_does_not_finish_in_time_is_closed(served: Served, sent: bytes) -> None:
    with served.connect(sent) as connection:
        begun = time.monotonic()
        assert is_closed(connection, 10) and time.monotonic() - begun < 5


@pytest.mark.parametrize("served", [(100, 0.6)], indirect=True)
@pytest.mark.parametrize("sent", [HEADER, HEADER.replace(b"4", b"400") + b"\r\n"], ids=["header", "body"])
def test_a_byte_now_and_then_gains_no_time(served: Served, sent: bytes) -> None:
    with served.connect(sent) as connection, pytest.raises(ConnectionError):
        for _ in range(40):
            connection.sendall(b"a")
            time.sleep(0.1)


@pytest.mark.parametrize("served", [(100, 0.5)], indirect=True)
@pytest.mark.parametrize("asked", [1, 2, 20])
def test_who_does_not_read_is_closed(served: Served, asked: int) -> None:
    with served.connect(b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * asked):
        assert comes(lambda: served.is_open() == 1) and comes(lambda: served.is_open() == 0)


@pytest.mark.parametrize("served", [(6, 0.3)], indirect=True)
def test_who_waits_for_us_keeps_the_connection(served: Served) -> None:
    with ExitStack() as held:
        asked = held.enter_context(served.connect(HEADER + b"\r\nabcd"))
        for _ in range(20):
            held.enter_context(served.connect(b""))
        time.sleep(0.8)
        served.go.set()
        assert asked.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [HEADER + b"\r\n", HEADER + b"\r\nab", HEADER + b"Expect: 100-continue\r\n\r\n"])
def test_an_aborted_body_leaves_nothing_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    served.connect(sent).close()
    # what was accepted before it is over when it is answered
    assert healthy(served.port) and comes(lambda: not served.is_open() and not served.server.server_state.tasks)
    assert caplog.records == []


def test_the_limit_leaves_most_file_descriptors_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits(soft: int) -> Limits:
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, soft))
        return Limits.of_this_process()

    assert [limits(soft).most_open for soft in (4, 256, 1024, 1 << 20, resource.RLIM_INFINITY)] == [
        2,
        64,
        MOST_OPEN,
        MOST_OPEN,
        MOST_OPEN,
    ]
    # what is accepted in one round is looked at in the next, and closed in the one after that
    assert all(limits(soft).most_open + 4 * limits(soft).backlog <= 0.75 * soft for soft in (256, 1024, 4096))


@pytest.mark.parametrize("part", ["receiver", "gate"])
def test_it_answers_beside_two_thousand_idle_connections(part: str, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2500:
        pytest.skip("this user may not open 2,500 files")
    port = free_ports(1)[0]
    own = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
    own |= {"VETGATE_HOME": str(tmp_path), f"VETGATE_{part.upper()}_PORT": str(port)}
    limited = ("prlimit", "--nofile=1024:1024", sys.executable, "-m", f"flows.service.{part}")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(limited, env=own, stdout=log, stderr=log)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 4096), before[1]))
        _wait(port, process)
        with ExitStack() as held:
            for number in range(2000):
                connection = socket.create_connection(("127.0.0.1", port), timeout=30)
                held.enter_context(connection).sendall(list(UNFINISHED.values())[number % 4])
            assert healthy(port)
            assert len(os.listdir(f"/proc/{process.pid}/fd")) < 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        process.terminate()
        process.wait(30)
    assert "Traceback" not in (tmp_path / "log").read_text()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            assert healthy(port)
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    ],
)
@pytest.mark.parametrize("path", [b"/slow", b"/health"])
def test_a_request_of_two_lengths_is_refused_and_what_follows_it_is_no_request(
    served: Served, lengths: bytes, path: bytes
) -> None:
    served.go.set()
    smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    verb = b"GET " if path == b"/health" else b"POST "
    sent = verb + path + b" HTTP/1.1\r\nHost: x\r\n" + lengths + b"\r\n0\r\n\r\n" + smuggled
    with served.connect(sent) as connection:
        got = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert got.count(b"HTTP/1.1") == 1 and got.split()[1] in (b"400", b"501")
    assert healthy(served.port)

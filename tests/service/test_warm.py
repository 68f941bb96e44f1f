"""The warm process and the launcher: a run is a fresh fork that ends with its launcher, alike, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.service import launch
from flows.service.warm import Warm, WarmProcess, _import
from tests.service.running import until_true

LAUNCHER = Path(launch.__file__)
SEEN: list[str] = []


def run(what: str) -> None:
    """What a fork does here in place of Prefect's engine."""
    SEEN.append(what)
    if what == "sleep":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        os.write(1, f"sleeping {os.getpid()}\n".encode())
        time.sleep(60)
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    descriptors = len(os.listdir("/proc/self/fd"))
    seen = {"seen": SEEN, "cwd": os.getcwd(), "pid": os.getpid(), "descriptors": descriptors}
    os.write(1, json.dumps(seen).encode())
    os._exit(7)


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A process that serves requests as the real one does: the name of its socket, and its id."""
    name = f"vetgate-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen(8)
        if (pid := os.fork()) == 0:
            try:
                request = Warm(listener).serve()
                if request is not None:
                    os.environ.update(request["environment"])
                    os.chdir(request["directory"])
                    run(os.environ["WHAT"])
            finally:
                os._exit(1)
    try:
        yield name, pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch(warm: tuple[str, int], tmp_path: Path) -> Launch:
    def start(what: str, name: str = warm[0], interpreter: str = sys.executable) -> subprocess.Popen[str]:
        line = [sys.executable, "-I", "-S", str(LAUNCHER), name, str(tmp_path), interpreter]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, env={"WHAT": what}, stdout=pipe, stderr=pipe, text=True)

    return start


def asleep(launcher: subprocess.Popen[str]) -> psutil.Process:
    assert launcher.stdout is not None
    word, pid = launcher.stdout.readline().split()
    assert word == "sleeping"
    return psutil.Process(int(pid))


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_run_ends_its_launcher_alike_and_leaves_nothing_to_the_next(launch: Launch, tmp_path: Path) -> None:
    answers = []
    for turn in range(4):
        launcher = launch(f"turn {turn}")
        out, err = launcher.communicate(timeout=60)
        assert launcher.returncode == 7, err
        answers.append(json.loads(out))
    assert [answer["seen"] for answer in answers] == [[f"turn {turn}"] for turn in range(4)]
    assert {answer["cwd"] for answer in answers} == {str(tmp_path)}
    assert len({answer["pid"] for answer in answers}) == 4
    assert len({answer["descriptors"] for answer in answers}) == 1


def test_a_signal_that_ends_a_run_ends_its_launcher(launch: Launch) -> None:
    assert launch("die").wait(timeout=60) == -signal.SIGSEGV


def test_a_launcher_passes_on_what_the_worker_asks_of_it(launch: Launch) -> None:
    launcher = launch("sleep")
    run = asleep(launcher)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == 9
    assert gone(run)


def test_a_run_ends_with_its_launcher_and_the_others_go_on(launch: Launch) -> None:
    first, second = launch("sleep"), launch("sleep")
    runs = asleep(first), asleep(second)
    first.kill()
    until_true(lambda: gone(runs[0]), 30, lambda: "the run went on without its launcher")
    assert not gone(runs[1])
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=60) == 9


def test_runs_end_with_the_warm_process_and_the_worker_hears_of_it(launch: Launch, warm: tuple[str, int]) -> None:
    launcher = launch("sleep")
    run = asleep(launcher)
    os.kill(warm[1], signal.SIGKILL)
    assert launcher.wait(timeout=60) == -signal.SIGKILL
    until_true(lambda: gone(run), 30, lambda: "the run went on without the warm process")


def test_where_nothing_is_warm_the_run_starts_as_ever(launch: Launch) -> None:
    launcher = launch("anything", name="vetgate-nobody", interpreter="/bin/echo")
    out, err = launcher.communicate(timeout=60)
    assert (launcher.returncode, out) == (0, "-m prefect.engine\n") and "starts without it" in err


@pytest.mark.parametrize("sent", [b"", b"\0\0\0\2{}", b"\xff\xff\xff\xff", b"\0\0\0\5hello"])
def test_what_is_no_request_is_turned_away(launch: Launch, warm: tuple[str, int], sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{warm[0]}")
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert turned_away(connection)
    assert launch("after that").wait(timeout=60) == 7


def test_a_process_with_a_second_thread_does_not_fork(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=[999], daemon=True).start()\n"
    )
    code = "import sys; sys.path.insert(0, sys.argv[1]); from flows.service.warm import _import; _import(['busy'])"
    quiet = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | quiet, capture_output=True, text=True
    )
    assert done.returncode == 1 and "expected one thread" in done.stderr


@pytest.mark.slow
def test_the_real_one_imports_with_one_thread_and_ends_with_its_worker() -> None:
    flows = ["flows.vetting.vet.vet", "flows.vetting.sweep_flow.sweep_flow"]
    assert callable(_import)
    process = WarmProcess(flows)
    pid = process.pid
    until_true(
        lambda: len(os.listdir(f"/proc/{pid}/task")) == 1 and asks(process.name), 120, lambda: "it did not import"
    )
    process.stop()
    assert not psutil.pid_exists(pid)


def asks(name: str) -> bool:
    """Whether it serves: what is no request is turned away."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(f"\0{name}")
        connection.shutdown(socket.SHUT_WR)
        try:
            return turned_away(connection)
        except TimeoutError:
            return False


def turned_away(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        # it was closed with something in it that was not read
        return True

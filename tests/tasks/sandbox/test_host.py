"""The sandbox against operations that behave as a hostile file might, at every level."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tasks.sandbox import host
from tasks.sandbox.answers import KNOWN, conclude
from tasks.sandbox.host import (
    Crashed,
    Died,
    Limits,
    OutOfMemory,
    Sandbox,
    SandboxUnavailable,
    TimedOut,
)
from tests.tasks.sandbox.sandbox_levels import LEVELS
from vetgate.errors import BadSubmission, NotFinite, NotUnderstood, StoreError

ROGUE = Path(__file__).parent / "rogue_operations.py"
LIMITS = Limits(cpu_seconds=20, memory_bytes=3 << 29, file_bytes=4 << 20, result_bytes=1 << 20)
FINE = {"outcome": "result", "stderr": ""}


@pytest.fixture(scope="module", params=LEVELS, ids=["limits", "filter", "bubblewrap"])
def sandbox(request, tmp_path_factory):
    given, scratch = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("scratch")
    (given / "model.onnx").write_bytes(b"model")
    os.environ["VETGATE_TEST_SECRET"] = "secret"
    try:
        with Sandbox(level=request.param, read_only=[given], scratch=scratch, limits=LIMITS, ops=ROGUE) as started:
            started.given, started.scratch = given, scratch
            yield started
    finally:
        del os.environ["VETGATE_TEST_SECRET"]


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_twenty_calls_each_get_a_fresh_process_with_two_threads(sandbox):
    seen = [sandbox.call("look", {}) for _ in range(20)]
    assert len({each["pid"] for each in seen}) == 20
    assert {each["threads"] for each in seen} == {2}
    assert {each["parent_threads"] for each in seen} == {1}, "a process with threads must not fork"


def test_nothing_of_the_host_is_inherited(sandbox):
    seen = sandbox.call("look", {})
    names = {"HOME", "TMPDIR", "PATH", "LANG", "PWD", "TORCH_DEVICE_BACKEND_AUTOLOAD", "GLIBC_TUNABLES"}
    assert {name for name in seen["environment"] if not name.startswith(("OMP_", "MKL_", "OPENBLAS_"))} <= names
    assert seen["no_new_privileges"] == "1"
    # the three standard ones, the way back, and the one that lists them
    assert len(seen["descriptors"]) == 5


def test_bubblewrap_hides_files_and_processes(sandbox):
    beside = sandbox.scratch.parent / "store"
    beside.mkdir(exist_ok=True)
    hidden = ["/etc/passwd", "/root/.bashrc", "/home", __file__, str(Path.home() / ".ssh"), "/var", str(beside)]
    shown = [str(sandbox.given / "model.onnx"), str(sandbox.scratch)]
    seen = sandbox.call("look", {"paths": hidden + shown})
    assert all(seen["visible"][path] for path in shown)
    if sandbox.level == 2:
        assert not any(seen["visible"][path] for path in hidden)
        assert seen["processes"] <= 3


def test_nothing_is_connected_to_but_at_level_0(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if sandbox.level == 0:
            sandbox.call("connect", {"port": port})
        else:
            with pytest.raises(Crashed, match="PermissionError"):
                sandbox.call("connect", {"port": port})
    if sandbox.level == 2:
        assert sandbox.call("look", {})["interfaces"] == ["lo"], "not those of the host, and so another loopback"


def test_bubblewrap_lets_only_the_scratch_directory_be_written(sandbox):
    assert sandbox.call("write", {"path": str(sandbox.scratch / "a"), "megabytes": 1}) == {"size": 1 << 20}
    if sandbox.level == 2:
        for path in (sandbox.given / "b", sandbox.given / "model.onnx", Path("/usr/b"), Path("/b"), ROGUE):
            with pytest.raises(StoreError, match="Read-only file system"):
                sandbox.call("write", {"path": str(path), "megabytes": 1})


def test_a_fork_cannot_trace_the_process_that_serves_the_next_one(sandbox):
    if sandbox.level == 0 and os.geteuid() == 0:
        pytest.skip("root may trace anything where no filter is")
    assert sandbox.call("trace_parent", {}) == {"attached": False}


def test_more_addresses_than_twice_its_memory_are_refused(sandbox):
    with pytest.raises(OutOfMemory, match=r"keep within its memory.*memory_bytes in the policy") as caught:
        sandbox.call("hog_tensors", {"bytes": 8 << 30})
    assert caught.value.exit_code == 3


def test_memory_that_is_held_is_limited_and_not_what_is_only_mapped(sandbox):
    limits = Limits(memory_bytes=1 << 30)
    assert sandbox.call("map", {"bytes": 900 << 20}, limits=limits) == {"mapped": 900 << 20}
    with pytest.raises(OutOfMemory, match=r"none in 1073741824 bytes of memory.*memory_bytes in the policy") as caught:
        sandbox.call("hold", {"bytes": 900 << 20}, limits=limits)
    assert caught.value.exit_code == 3
    assert sandbox.call("chatter", {}) == {"said": True}


@pytest.mark.parametrize("level", LEVELS[2:])
def test_what_lies_in_the_file_systems_of_bubblewrap_counts_as_memory(level, tmp_path):
    limits = Limits(memory_bytes=600 << 20)
    with Sandbox(level=level, scratch=tmp_path, limits=limits, ops=ROGUE) as sandbox:
        assert sandbox.call("write", {"path": "/dev/shm/a", "megabytes": 300, "stay": 1}) == {"size": 300 << 20}
        with pytest.raises(OutOfMemory, match="bytes of memory"):
            sandbox.call("write", {"path": "/tmp/b", "megabytes": 300, "stay": 60})


def test_the_number_of_threads_is_limited(sandbox):
    with pytest.raises(Crashed, match="more than 64 threads; refuse the model"):
        sandbox.call("start_threads", {"count": 100}, limits=Limits(tasks=64))


def test_the_number_of_open_files_is_limited(sandbox):
    assert sandbox.call("open_files", {}, limits=Limits(open_files=40))["opened"] < 40


def test_no_core_is_written_and_limits_stay_as_they_are(sandbox):
    seen = sandbox.call("raise_limits", {})
    assert seen["core"] == [0, 0]
    # root may raise limits, where no filter forbids it
    assert not seen["raised"] or (sandbox.level == 0 and os.geteuid() == 0)


def test_what_sleeps_is_ended_by_the_clock(sandbox):
    sandbox.call("chatter", {})
    started = time.monotonic()
    with pytest.raises(TimedOut, match=r"none in 0\.5 s, of which it used 0 s of .*timeout_seconds in the policy"):
        sandbox.call("sleep", {"seconds": 60}, limits=Limits(wall_seconds=0.5))
    assert time.monotonic() - started < 5
    assert Limits(cpu_seconds=7).to_json()["wall_seconds"] == 70


@pytest.mark.parametrize("op", ["spin", "spin_deaf", "spin_in_children"])
def test_processor_time_is_limited_that_of_all_its_processes_together(sandbox, op):
    if sandbox.level > 0 and op == "spin_in_children":
        pytest.skip("no process is started where the filter is")
    with pytest.raises(TimedOut, match="none in 1 s of processor time"):
        sandbox.call(op, {}, limits=Limits(wall_seconds=60, cpu_seconds=1))


def test_time_that_a_loaded_host_gives_to_others_does_not_count(sandbox):
    """Not to be scheduled is what load does to a process; stopping it does the same, for as long as the test wants."""
    sandbox.call("look", {})
    before = set(descendants())
    held = []

    def hold() -> None:
        while not (fork := [p for p in descendants() if p not in before and p.cpu_times().user > 0.1]):
            time.sleep(0.02)
        os.kill(fork[0].pid, signal.SIGSTOP)
        time.sleep(4)
        os.kill(fork[0].pid, signal.SIGCONT)
        held.append(fork[0].pid)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    started = time.monotonic()
    assert sandbox.call("work", {"seconds": 1.0}, limits=Limits(cpu_seconds=2))["spent"] >= 1
    assert time.monotonic() - started > 4 and held
    assert 1 <= sandbox.cpu_seconds < 2


def test_file_size_is_limited_and_reads_as_a_full_disk(sandbox):
    with pytest.raises(StoreError, match="expected room for a file") as caught:
        sandbox.call("write", {"path": str(sandbox.scratch / "big"), "megabytes": 8})
    assert caught.value.exit_code == 2
    assert (sandbox.scratch / "big").stat().st_size <= 4 << 20


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_signal_is_named_with_the_last_words(sandbox, number):
    with pytest.raises(Crashed, match=f"signal {int(number)} {number.name}.*last words"):
        sandbox.call("die", {"signal": int(number)})


@pytest.mark.parametrize("number, own", [(signal.SIGSEGV, True), (signal.SIGBUS, True), (signal.SIGKILL, False)])
def test_a_fault_of_its_own_is_told_from_being_killed(sandbox, number, own):
    with pytest.raises(Crashed) as caught:
        sandbox.call("die", {"signal": int(number)})
    assert isinstance(caught.value, Died) is own


def test_an_exit_without_an_answer_is_a_crash(sandbox):
    with pytest.raises(Crashed, match="exit code 0"):
        sandbox.call("leave", {"code": 0})


def test_errors_keep_class_message_and_exit_code(sandbox):
    with pytest.raises(BadSubmission, match=r"^expected this, got that$") as caught:
        sandbox.call("fail", {"kind": "BadSubmission", "message": "expected this, got that"})
    assert caught.value.exit_code == 4
    with pytest.raises(NotUnderstood, match=r"^truncated$") as nearest:
        sandbox.call("fail", {"kind": "Truncated", "message": "truncated"})
    assert nearest.value.exit_code == 3


def test_other_errors_are_crashes_and_cannot_steer_the_terminal(sandbox):
    with pytest.raises(Crashed, match="TypeError: \\\\x1b\\[2Jgone") as caught:
        sandbox.call("fail", {"kind": "TypeError", "message": "\x1b[2Jgone"})
    assert caught.value.exit_code == 3
    assert "Traceback" in caught.value.stderr
    assert "Traceback" not in str(caught.value)


def test_an_unknown_operation_is_refused(sandbox):
    with pytest.raises(Crashed, match=r"no operation 'os.system'"):
        sandbox.call("os.system", {})


def test_what_libraries_print_does_not_reach_the_protocol(sandbox):
    assert sandbox.call("chatter", {}) == {"said": True}


def test_progress_arrives_in_order_and_in_range(sandbox):
    heard: list[float] = []
    sandbox.call("count", {}, on_progress=heard.append)
    assert len(heard) >= 3
    assert heard == sorted(heard)
    assert heard[-1] <= 1


@pytest.mark.parametrize(
    "forged",
    [
        {"kind": "E", "request": 0, "body": "{}"},
        {"kind": "R", "request": 1 << 31, "body": '{"ok": {}}'},
        {"kind": "P", "request": 0, "body": "x" * 1000},
        {"kind": "R", "request": 0, "body": "", "raw": "x" * 1000},
    ],
    ids=["end", "other request", "progress", "noise"],
)
def test_forged_frames_are_a_crash_and_the_next_call_works(sandbox, forged):
    with pytest.raises(Crashed, match="bytes that are none"):
        sandbox.call("forge", forged)
    assert sandbox.call("chatter", {}) == {"said": True}


def test_an_oversized_answer_is_refused(sandbox):
    assert len(sandbox.call("large", {"bytes": 1 << 19})["text"]) == 1 << 19
    with pytest.raises(Crashed, match="more than 1048576 bytes"):
        sandbox.call("large", {"bytes": 1 << 21})


def test_a_result_that_is_not_finite_is_refused(sandbox):
    with pytest.raises(NotFinite):
        sandbox.call("not_finite", {})


def test_what_a_fork_left_running_is_killed_with_it(sandbox):
    before = {process.pid for process in descendants()}
    sandbox.call("linger", {"running": str(sandbox.scratch / "left"), "stay": False})
    assert {process.pid for process in descendants()} <= before


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"ok": []}',
        b'{"ok": {}, "error": {}}',
        b'{"ok": {"p": NaN}}',
        b'{"ok": {"p": 1e999}}',
        b'{"ok": {"p": 1, "p": 2}}',
        b'{"ok": {"p": "\\ud800"}}',
        b'{"ok": {"p": ' + b"9" * 5000 + b"}}",
        b"[" * 100_000,
        b'{"error": {"names": [[]], "message": ""}}',
        b'{"error": "Denied"}',
        b'{"ok": {}} {"ok": {}}',
    ],
)
def test_an_answer_is_parsed_strictly(answer):
    with pytest.raises(Crashed):
        conclude("detect", LIMITS, answer, FINE)


def test_an_answer_cannot_name_a_class_outside_the_errors():
    with pytest.raises(Crashed, match="SystemExit"):
        conclude("detect", LIMITS, b'{"error": {"names": ["SystemExit"], "message": "SystemExit"}}', FINE)
    assert all(issubclass(kind, Exception) and kind.exit_code > 0 for kind in KNOWN.values())


def test_a_start_that_takes_too_long_names_its_own_limit(tmp_path):
    with Sandbox(scratch=tmp_path, ops=ROGUE, start_seconds=0.05) as sandbox:
        with pytest.raises(TimedOut, match=r"to start within 0 s.*VETGATE_START_SECONDS") as caught:
            sandbox.call("chatter", {})
        assert "policy" not in str(caught.value)


def test_a_sandbox_that_does_nothing_at_all_names_the_key_of_the_policy(sandbox, monkeypatch):
    # what the parent inside gets beyond the time of its fork
    monkeypatch.setattr(host, "GRACE_SECONDS", -1)
    with pytest.raises(TimedOut, match=r"within 1 s, got none; it was killed.*timeout_seconds in the policy"):
        sandbox.call("sleep", {"seconds": 60}, limits=Limits(wall_seconds=2))


@pytest.mark.parametrize("level", LEVELS)
def test_start_returns_at_once_and_survives_the_thread_that_called_it(level, tmp_path):
    sandbox = Sandbox(level=level, scratch=tmp_path, limits=LIMITS, ops=ROGUE)
    started = time.monotonic()
    caller = threading.Thread(target=sandbox.start)
    caller.start()
    caller.join()
    assert time.monotonic() - started < 1.5, "importing torch takes longer"
    assert sandbox.call("chatter", {}) == {"said": True}
    if level > 0:
        with pytest.raises(Crashed, match="PermissionError"):
            sandbox.call("kill_parent", {})
        assert sandbox.call("chatter", {}) == {"said": True}
    else:
        # a process that kills the one that serves it takes the sandbox along, and no call hangs
        with pytest.raises(Crashed, match="ended by itself"):
            sandbox.call("kill_parent", {})
        with pytest.raises(Crashed, match="start another"):
            sandbox.call("chatter", {})
    sandbox.close()
    sandbox.close()


@pytest.mark.parametrize("level", LEVELS)
def test_closing_in_the_middle_of_a_call_leaves_no_process(level, tmp_path):
    before = {process.pid for process in descendants()}
    sandbox = Sandbox(level=level, scratch=tmp_path, limits=LIMITS, ops=ROGUE)
    sandbox.start()
    errors: list[BaseException] = []

    def call() -> None:
        try:
            sandbox.call("linger", {"running": str(tmp_path / "running"), "stay": True})
        except Crashed as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    wait_for(tmp_path / "running")
    sandbox.close()
    caller.join(timeout=10)
    assert len(errors) == 1
    assert {process.pid for process in descendants()} <= before


HOST = """
import sys, threading
from pathlib import Path
from tasks.sandbox import host
from tasks.sandbox.host import Sandbox
scratch = Path(sys.argv[1])
sandbox = Sandbox(level=int(sys.argv[2]), scratch=scratch, ops=Path(sys.argv[3]))
sandbox.start()
sandbox.call("linger", {"running": str(scratch / "running"), "stay": True})
"""


@pytest.mark.parametrize("level", LEVELS)
def test_killing_the_host_leaves_no_process(level, tmp_path):
    host = subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path), str(level), str(ROGUE)])
    try:
        wait_for(tmp_path / "running")
        inside = psutil.Process(host.pid).children(recursive=True)
        assert len(inside) >= (3 if level == 0 else 2)
    finally:
        host.send_signal(signal.SIGKILL)
        host.wait()
    _, alive = psutil.wait_procs(inside, timeout=10)
    assert alive == []


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)


def test_a_level_that_the_host_lacks_is_unavailable(tmp_path):
    with pytest.raises(SandboxUnavailable, match="level 3") as caught:
        Sandbox(level=3, scratch=tmp_path)
    assert caught.value.exit_code == 3


def test_bubblewrap_that_may_not_run_counts_as_absent(tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    script = "from tasks.sandbox.host import available_level; print(available_level())"
    seen = subprocess.run(
        [sys.executable, "-c", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert seen.stdout.strip() == "1"


def test_operations_that_do_not_import_say_why(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\n")
    with Sandbox(scratch=tmp_path, ops=broken) as sandbox, pytest.raises(Crashed, match="no_such_module"):
        sandbox.call("anything", {})


def test_a_missing_directory_is_refused_before_the_start(tmp_path):
    with pytest.raises(SandboxUnavailable, match="nowhere"):
        Sandbox(read_only=[tmp_path / "nowhere"], scratch=tmp_path).start()

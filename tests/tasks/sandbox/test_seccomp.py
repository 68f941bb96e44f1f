"""The filter of system calls, by what is really tried under it, and by its steps for machines that this one is not."""

from __future__ import annotations

import errno
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tasks.sandbox.host import Died, Limits, Sandbox
from tasks.sandbox.seccomp import (
    ABOUT_ITSELF,
    ALLOW,
    AND,
    ARCHITECTURE_AT,
    ARCHITECTURES,
    AT_LEAST,
    CLONE,
    CLONE3,
    EQUAL,
    FIRST_AT,
    LOAD,
    NUMBER_AT,
    PRLIMIT,
    REFUSE,
    REFUSED,
    RETURN,
    SETRLIMIT,
    THIRD_AT,
    Step,
    program,
)
from tests.tasks.sandbox.sandbox_levels import FILTERED

ROGUE = Path(__file__).parent / "rogue_system_calls.py"
REFUSAL = REFUSE | errno.EPERM
PID = 4711


@pytest.fixture(scope="module", params=FILTERED, ids=["filter", "bubblewrap"])
def sandbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    scratch = tmp_path_factory.mktemp("scratch")
    with Sandbox(level=request.param, scratch=scratch, limits=Limits(cpu_seconds=20), ops=ROGUE) as started:
        yield started


@pytest.mark.parametrize("tried", ["open_sockets", "start_others", "meet_others", "leave_memory", "call_all"])
def test_it_reaches_nothing_beyond_itself(sandbox: Sandbox, tried: str) -> None:
    seen = sandbox.call(tried, {"host": os.getpid()})
    assert seen and seen == dict.fromkeys(seen, "EPERM")


def test_threads_torch_and_its_own_files_work(sandbox: Sandbox) -> None:
    seen = sandbox.call("work_on", {})
    assert seen["heard"] == [True] and seen["norm"] == 300
    assert seen["status"] == {"Seccomp": "2", "NoNewPrivs": "1"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86_64 has other tables")
def test_other_tables_of_the_kernel_lead_nowhere(sandbox: Sandbox) -> None:
    assert sandbox.call("enter_by_other_tables", {}) == {"x32": "EPERM"}
    try:
        assert sandbox.call("enter_by_interrupt", {}) == {"result": -errno.EPERM}
    except Died as error:
        assert "SIGSEGV" in str(error), "a kernel without the 32-bit table"


@pytest.mark.skipif(platform.machine() not in ARCHITECTURES, reason="no filter for this machine")
class TestKernel:
    def test_that_takes_no_filter_gives_level_0_and_no_more(self) -> None:
        said = where_no_filter_is_taken("""
from pathlib import Path
from tasks.sandbox.host import Sandbox, SandboxUnavailable, available_level
print(available_level(), Sandbox(scratch=Path()).level)
try:
    Sandbox(scratch=Path(), level=1)
except SandboxUnavailable as error:
    print(error)
""")
        assert said.startswith("0 0\nexpected a sandbox of level 1, got at most 0 on this host; allow seccomp")

    def test_that_takes_no_filter_has_no_file_scanned(self) -> None:
        said = where_no_filter_is_taken("""
import sys
from pathlib import Path
from tasks.sandbox.scanning import ScanWorker
with ScanWorker() as worker:
    scanned = worker.scan("a", Path("/etc/hostname"))
print(scanned.outcome.value, scanned.findings[0].evidence)
""")
        assert said.startswith("inconclusive this kernel takes no filter of system calls")

    def test_takes_the_filter_of_a_user_without_rights(self) -> None:
        script = """
import os, socket
from tasks.sandbox.seccomp import refuse_system_calls
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
refuse_system_calls()
try:
    socket.socket()
except PermissionError:
    print("refused")
"""
        assert run(script) == "refused\n"


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def where_no_filter_is_taken(script: str) -> str:
    """What a script prints below a filter that refuses to take another one."""
    return run(
        f"""
import errno, platform
from tasks.sandbox.seccomp import *
prctl_number = (157, 167)[ARCHITECTURES[platform.machine()][1]]
install([(LOAD, 0, 0, NUMBER_AT), (EQUAL, 0, 3, prctl_number), (LOAD, 0, 0, FIRST_AT), (EQUAL, 0, 1, 22),
         (RETURN, 0, 0, REFUSE | errno.EPERM), (RETURN, 0, 0, ALLOW)])
{script}"""
    )


def test_a_machine_whose_numbers_are_not_known_has_no_filter() -> None:
    with pytest.raises(OSError, match=r"x86_64, aarch64 .* got riscv64"):
        program("riscv64", PID)


def outcome(steps: Sequence[Step], seen: dict[int, int]) -> int:
    """What the steps come to; `seen` is by its place in the record that the kernel gives them, zero where not named."""
    at = held = 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == RETURN:
            return value
        if code == LOAD:
            held = seen.get(value, 0)
        elif code == AND:
            held &= value
        else:
            assert code in (EQUAL, AT_LEAST)
            at += yes if (held == value if code == EQUAL else held >= value) else no


@pytest.mark.parametrize("machine", ARCHITECTURES)
class TestSteps:
    def ended(self, machine: str, number: int, first: int = 0, third: int = 0, **changes: bool) -> int:
        seen = {NUMBER_AT: number, ARCHITECTURE_AT: ARCHITECTURES[machine][0], FIRST_AT: first & 0xFFFFFFFF}
        seen |= {THIRD_AT: third & 0xFFFFFFFF, THIRD_AT + 4: third >> 32}
        return outcome(program(machine, PID, **changes), seen)

    def test_what_is_listed_is_refused_and_all_else_allowed(self, machine: str) -> None:
        place = ARCHITECTURES[machine][1]
        listed = {numbers[place] for numbers in REFUSED.values()} - {None} | {SETRLIMIT[place]}
        special = {CLONE[place], CLONE3[place], PRLIMIT[place], *(of[place] for of in ABOUT_ITSELF.values())}
        assert not listed & special
        assert {n for n in range(600) if n not in special and self.ended(machine, n) == REFUSAL} == listed
        assert {self.ended(machine, n) for n in set(range(600)) - listed - special} == {ALLOW}

    def test_another_table_is_refused_whatever_is_called(self, machine: str) -> None:
        for number in range(600):
            assert outcome(program(machine, PID), {NUMBER_AT: number, ARCHITECTURE_AT: 0x40000003}) == REFUSAL
        beyond = self.ended(machine, 0x40000000 + 39)
        assert beyond == (REFUSAL if machine == "x86_64" else ALLOW)

    def test_threads_are_allowed_and_no_process_or_namespace(self, machine: str) -> None:
        clone = CLONE[ARCHITECTURES[machine][1]]
        thread = 0x3D0F00  # what the C library asks for
        assert self.ended(machine, clone, thread) == ALLOW
        for new in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
            assert self.ended(machine, clone, thread | new) == REFUSAL
        assert self.ended(machine, clone, 17) == self.ended(machine, clone, 0x4111) == REFUSAL
        assert self.ended(machine, CLONE3[ARCHITECTURES[machine][1]]) == REFUSE | errno.ENOSYS

    def test_signals_reach_the_process_itself(self, machine: str) -> None:
        for numbers in ABOUT_ITSELF.values():
            number = numbers[ARCHITECTURES[machine][1]]
            assert self.ended(machine, number, PID) == ALLOW
            assert {self.ended(machine, number, other) for other in (0, -1, -PID, 1, PID + 1)} == {REFUSAL}

    def test_limits_are_asked_for_and_not_set(self, machine: str) -> None:
        asked, place = PRLIMIT[ARCHITECTURES[machine][1]], ARCHITECTURES[machine][1]
        assert self.ended(machine, asked) == ALLOW
        assert {self.ended(machine, asked, third=at) for at in (0x1000, 0x7F00 << 32)} == {REFUSAL}
        assert self.ended(machine, SETRLIMIT[place]) == REFUSAL
        assert self.ended(machine, asked, third=0x1000, limits_change=True) == ALLOW
        assert self.ended(machine, SETRLIMIT[place], limits_change=True) == ALLOW


@pytest.mark.parametrize(
    "place, header",
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
    ids=ARCHITECTURES,
)
def test_numbers_are_those_of_the_kernel(place: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not here: apt-get install -y linux-libc-dev")
    text = Path(header).read_text("ascii")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", text)}
    ours = REFUSED | ABOUT_ITSELF | {"clone": CLONE, "clone3": CLONE3, "setrlimit": SETRLIMIT, "prlimit64": PRLIMIT}
    assert {name: numbers[place] for name, numbers in ours.items()} == {name: known.get(name) for name in ours}

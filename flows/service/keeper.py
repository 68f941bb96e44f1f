"""Keep one part of the service running: what honcho, which starts and ends the parts, does not do.

A part that ends is started again, later each time, and given up when it keeps ending at once. When the part is to stop,
when it has ended, or when `vetgate up` is gone in whatever way, everything that it ever started is ended too: servers
and workers have children that ignore SIGTERM or that outlive them.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tasks.program import ended
from tasks.sandbox.prctl import PR_SET_CHILD_SUBREAPER, prctl

STEADY_SECONDS = 30.0
ATTEMPTS = 5
LONGEST_PAUSE = 30.0
# honcho ends us when 5 s are over
TERMINATE_SECONDS = 2.5
REAP_SECONDS = 10.0


def main() -> int:
    """Keep the command after `--` running until a signal, or until the process --up is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--up", type=int, required=True, help="process id of `vetgate up`")
    parser.add_argument("--pid-file", type=Path, required=True)
    parser.add_argument("--linger", type=float, default=0.0, help="seconds for which others may still need this part")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    return Keeper(given.name, given.up, given.pid_file, given.linger, given.command[1:]).keep()


class Keeper:
    """One part, its command and what ends it."""

    def __init__(self, name: str, up: int, pid_file: Path, linger: float, command: list[str]) -> None:
        self._name, self._pid_file, self._linger, self._command = name, pid_file, linger, command
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._stopping = [woken, os.pidfd_open(up)]
        # a process with this number may be another by now
        self._orphan = up not in {parent.pid for parent in psutil.Process().parents()}

    def keep(self) -> int:
        """Run the command again and again; 0 when it was told to stop, 2 when it was given up."""
        failures = 0
        while not self._orphan:
            started = time.monotonic()
            code = self._run()
            if code is None:
                break
            failures = 1 if time.monotonic() - started > STEADY_SECONDS else failures + 1
            if failures >= ATTEMPTS:
                self._say(f"ended with {code}, {failures} times in a row; given up, see its messages above")
                return 2
            pause = min(2.0 ** (failures - 1), LONGEST_PAUSE)
            self._say(f"ended with {code}; started again in {pause:.0f} s")
            if self._ready(seconds=pause):
                break
        self._pid_file.unlink(missing_ok=True)
        return 0

    def _run(self) -> int | None:
        """Run the command once; how it ended, with everything it started ended too, or None when it is to stop."""
        child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._pid_file.write_text(str(child.pid))
        ended = os.pidfd_open(child.pid)
        while not (ready := self._ready(ended, seconds=REAP_SECONDS)):
            _reap(child.pid)
        os.close(ended)
        if not ready.isdisjoint(self._stopping):
            self._end(child)
            return None
        code = child.wait()
        end_all()
        return code

    def _ready(self, *others: int, seconds: float) -> set[int]:
        """Which of what tells us to stop, and of the others, tells so within `seconds`."""
        return set(select.select([*self._stopping, *others], [], [], seconds)[0])

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        # flow runs that end now still tell the server so
        time.sleep(self._linger)
        child.terminate()
        try:
            child.wait(TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        end_all()

    def _say(self, words: str) -> None:
        print(f"{self._name} {words}", flush=True)


def end_all(root: psutil.Process | None = None) -> None:
    """End every process below this one; as their subreaper it has those too whose own parents are gone."""
    root = root or psutil.Process()
    while left := [p for p in root.children(recursive=True) if _lives(p)]:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _reap(child: int) -> None:
    """Take notice of orphans that ended, so that they do not stay as zombies; the child itself is waited for."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None or ended.si_pid == child:
            return
        os.waitpid(ended.si_pid, 0)


if __name__ == "__main__":
    sys.exit(ended(main))

"""How far a submitted file can be shut in on this host; each level has what those below it have.

Level 0 is limits on a process. Level 1 has a filter in the kernel besides: no socket, no other program or process, no
signal to others. A kernel that does not take the filter gives level 0, with bubblewrap or without. Level 2 is
bubblewrap: no network, no other process, no environment, and of the files only the system's libraries, the interpreter,
our two packages, what it is given to read and one directory to write.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vetgate.shipped import PACKAGES

# -I ignores PYTHON* variables, the user's packages and the working directory
INTERPRETER = (sys.executable, "-I")
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from tasks.sandbox.child import main; "
BOOT += "main(int(sys.argv[2]), sys.argv[3])"
TRIAL = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from tasks.sandbox.seccomp import refuse_system_calls
refuse_system_calls()
try:
    socket.socket()
except PermissionError:
    sys.exit(0)
sys.exit("the filter refuses nothing")
"""
# a trial that takes so long would have a busy host called one without bubblewrap
PROBE_SECONDS = 120


@functools.lru_cache(maxsize=1)
def available_level() -> int:
    """The highest level that this host gives, 0, 1 or 2; tried once a process."""
    # many containers ship bubblewrap and forbid it to work; -S keeps the trial near 50 ms
    trial = [*INTERPRETER, "-S", "-c", TRIAL, str(PACKAGES)]
    return 2 if _works([*_bubblewrap({}, (), None), *trial]) else 1 if _works(trial) else 0


def _works(line: Sequence[str]) -> bool:
    try:
        done = subprocess.run(line, env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def command(
    level: int,
    *,
    ops: Path,
    environment: Mapping[str, str],
    read_only: Sequence[Path],
    scratch: Path,
    device: str = "cpu",
) -> list[str]:
    """The command line that starts the parent inside with the operations of the file `ops`.

    With another `device` than the processor bubblewrap lets the files in /dev through that its driver goes by.
    """
    start = [*INTERPRETER, "-c", BOOT, str(PACKAGES), str(level), str(ops)]
    if level < 2:
        return start
    return [*_bubblewrap(environment, (*read_only, ops), scratch, devices=_devices(device)), *start]


def _devices(device: str) -> list[Path]:
    return [] if device == "cpu" else sorted(Path("/dev").glob("nvidia*"))


def _bubblewrap(
    environment: Mapping[str, str], read_only: Sequence[Path], scratch: Path | None, *, devices: Sequence[Path] = ()
) -> list[str]:
    """bubblewrap and its arguments; every path inside is what it is outside."""
    line = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    line += ["--cap-drop", "ALL"]
    for name, value in environment.items():
        line += ["--setenv", name, value]
    line += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", *_system()]
    for path in devices:
        line += ["--dev-bind", str(path), str(path)]
    for path in dict.fromkeys([*_runtime(), *read_only]):
        line += ["--ro-bind", str(path), str(path)]
    if scratch is not None:
        line += ["--bind", str(scratch), str(scratch)]
    return [*line, "--remount-ro", "/", "--chdir", "/tmp"]


def _system() -> list[str]:
    line = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path in map(Path, ("/bin", "/lib", "/lib32", "/lib64")):
        if path.is_symlink():
            line += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            line += ["--ro-bind", str(path), str(path)]
    return line


def _runtime() -> list[Path]:
    """The virtual environment, the interpreter it was made from (as named and as resolved) and our packages."""
    named = [Path(sys.prefix), Path(sys.base_prefix)]
    prefixes = [p for p in (*named, *(n.resolve() for n in named)) if not p.is_relative_to("/usr")]
    return [*prefixes, PACKAGES / "vetgate", PACKAGES / "tasks"]

"""What comes back from the sandbox, and the error to raise when that is no result. Nothing in an answer is trusted.

An error of vetgate's own keeps its class, and with it its exit code; every other ending is a SandboxError.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NoReturn

from vetgate import errors
from vetgate.errors import VetgateError
from vetgate.formats.plain_text import escaped_lines

MESSAGE_CHARACTERS = 2000
# where the limits are set
MORE_TIME, MORE_MEMORY = "allow more by timeout_seconds in the policy", "allow more by memory_bytes in the policy"
# a host may be so much slower than an idle one before it is taken for one that does nothing
WALL_FACTOR = 10


class SandboxError(VetgateError):
    """What was submitted could not be looked at inside the sandbox; `stderr` is the end of what it printed."""

    exit_code: ClassVar[int] = 3
    code = "sandbox"

    def __init__(self, message: str, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


class SandboxUnavailable(SandboxError):
    """This host cannot give the sandbox level that is demanded."""

    code = "sandbox-unavailable"


class Crashed(SandboxError):
    """An operation ended without a valid answer."""

    code = "crashed"


class Died(Crashed):
    """An operation was ended by a fault of its own, such as a wrong address: what it was given broke what ran it."""

    code = "died"


class TimedOut(SandboxError):
    """An operation ran past its limit of wall-clock or processor time."""

    code = "timed-out"


class OutOfMemory(SandboxError):
    """An operation asked for more memory than its limit."""

    code = "out-of-memory"


FAULTS = ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL", "SIGBUS")
KNOWN: dict[str, type[VetgateError]] = {
    name: item for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, VetgateError)
} | {"OutOfMemory": OutOfMemory, "Crashed": Crashed}


@dataclass(frozen=True)
class Limits:
    """What one call may use: processor time of all its threads and processes together, so that load fails nothing.

    Wall-clock time only ends what sleeps: a multiple of the processor time if not given. `memory_bytes` is what all of
    them hold (resident, pages of files and shared ones included, in each that has them), looked at several times a
    second; importing torch alone takes 0.25 GiB. Each has twice as much address space, but not where the network
    computes on another `device` than the processor, whose driver maps all that there is. `tasks` counts threads.
    """

    cpu_seconds: int = 900
    wall_seconds: float | None = None
    memory_bytes: int = 6 << 30
    file_bytes: int = 1 << 30
    open_files: int = 256
    tasks: int = 1024
    result_bytes: int = 64 << 20
    threads: int = 2
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """The limits as plain numbers, every one of them set."""
        return {**asdict(self), "wall_seconds": self.wall}

    @property
    def single(self) -> Limits:
        """The same limits with one thread: what a detector gets, so that no number of threads changes what it finds."""
        return replace(self, threads=1)

    @property
    def wall(self) -> float:
        """The wall-clock seconds after which a call is ended, however little it has worked."""
        return self.cpu_seconds * WALL_FACTOR if self.wall_seconds is None else self.wall_seconds


def conclude(op: str, limits: Limits, answer: bytes, end: Mapping[str, Any]) -> dict[str, Any]:
    """The result of an operation from its answer and the way its fork ended, or the error that it comes to."""
    tail = printable(end["stderr"], last=True)
    if end["outcome"] == "result":
        return _result(op, answer, tail)
    kind, got = _failure(end, limits, tail)
    final = tail.strip().rpartition("\n")[2]
    raise kind(f"expected an answer from {op}, got {got}" + (f" ({final})" if final else ""), tail)


def _failure(end: Mapping[str, Any], limits: Limits, tail: str) -> tuple[type[SandboxError], str]:
    outcome = end["outcome"]
    if outcome == "wall":
        worked = f"{end['cpu_seconds']:.0f} s of processor time"
        return (
            TimedOut,
            f"none in {limits.wall:g} s, of which it used {worked}; free this host, {MORE_TIME}, or refuse the model",
        )
    if outcome == "cpu":
        return TimedOut, f"none in {limits.cpu_seconds} s of processor time; {MORE_TIME} or refuse the model"
    if outcome == "memory":
        return OutOfMemory, f"none in {limits.memory_bytes} bytes of memory; {MORE_MEMORY} or refuse the model"
    if outcome == "tasks":
        return Crashed, f"more than {limits.tasks} threads; refuse the model"
    if outcome == "oversized":
        return Crashed, f"one of more than {limits.result_bytes} bytes; refuse the model"
    if outcome == "garbage":
        return Crashed, "bytes that are none; refuse the model"
    if "bad_alloc" in tail:
        return OutOfMemory, f"a refused allocation; {MORE_MEMORY} or refuse the model"
    if outcome == "signal":
        name = signal.Signals(end["signal"]).name if end["signal"] in set(signal.Signals) else "of no name"
        hint = "free memory on this host" if name == "SIGKILL" else "refuse the model"
        return Died if name in FAULTS else Crashed, f"signal {end['signal']} {name}; {hint}"
    return Crashed, f"exit code {end['exit']}; refuse the model"


def _result(op: str, answer: bytes, tail: str) -> dict[str, Any]:
    try:
        read = _strict(answer)
        if set(read) == {"ok"} and isinstance(read["ok"], dict):
            result: dict[str, Any] = read["ok"]
            return result
        names, message = read["error"]["names"], printable(str(read["error"]["message"]))
        kind = next((KNOWN[name] for name in names if name in KNOWN), Crashed)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        got = printable(f"{type(error).__name__}: {error}")
        raise Crashed(f"expected a JSON answer from {op}, got {got}; refuse the model", tail) from error
    if kind is OutOfMemory:
        got = message or "MemoryError"
        raise OutOfMemory(f"expected {op} to keep within its memory, got {got}; {MORE_MEMORY}", tail)
    if kind is Crashed:
        raise Crashed(f"expected {op} to answer, got {message}; refuse the model", tail)
    raise kind(message)


def _strict(answer: bytes) -> dict[str, Any]:
    """The JSON object in untrusted bytes; raises ValueError on NaN, infinity, a repeated name or half a character."""
    read = json.loads(answer, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_distinct)
    if not isinstance(read, dict):
        raise ValueError("no object")
    if b"\\ud" in answer.lower():
        # half a surrogate pair passes the parser and fails the process that writes it down later
        json.dumps(read, ensure_ascii=False).encode()
    return read


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_number(digits[:20])


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is repeated in an object")
    return members


def printable(text: str, *, last: bool = False) -> str:
    """The first (or last) characters of a text, those written out that would steer the terminal that shows it."""
    return escaped_lines(text[-MESSAGE_CHARACTERS:] if last else text[:MESSAGE_CHARACTERS])

"""Scanning files and directories in a process of its own, which is started anew when a file ends it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.sandbox.levels import INTERPRETER, available_level
from vetgate.formats.plain_text import escaped
from vetgate.scan.inspection import Finding
from vetgate.scan.rules import EXTERNAL_DATA, LIMIT, LINK, UNFINISHED, UNREAD, ScanRule
from vetgate.scan.scanned import Outcome, ScannedFile
from vetgate.shipped import PACKAGES

BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from tasks.sandbox.scan_worker import main; main()"
# of processor time for any file, and for so many bytes of it one second more; of the clock it is given twice that
LEAST_SECONDS, BYTES_A_SECOND = 30, 8 << 20
MOST_ANSWER = 8 << 20
MAX_FILES = 100_000
# models that may claim one file of weights: each has it read again
MAX_CLAIMS = 16
Parts = Set[tuple[int, int]]


class ScanWorker:
    """The process that scans; use it as a context."""

    def __init__(self, *, seconds: int = LEAST_SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    @property
    def pid(self) -> int | None:
        """The number of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def scan(self, path: str, file: Path, size: int = 0, parts: Parts | None = None) -> ScannedFile:
        """Scan one file of about `size` bytes, which is called `path` in what is found; raises nothing.

        With `parts` it is scanned as the tensors of an ONNX file beside it, which begin and are as long as these say.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()
        seconds = self.seconds + size // BYTES_A_SECOND
        timer = threading.Timer(2 * seconds, self._overdue, [process, late])
        timer.daemon = True
        timer.start()
        try:
            named = {"path": path, "file": os.fspath(file.absolute())}
            asked = named | {"seconds": seconds, "parts": None if parts is None else sorted(parts)}
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline(MOST_ANSWER)
            return ScannedFile.from_json(path, json.loads(answer))
        except (OSError, ValueError, KeyError, TypeError):
            self._stop()
            spent = late.is_set() or process.returncode == -signal.SIGXCPU
            why = f"it took more than {seconds} s" if spent else f"its reader ended ({process.returncode})"
            if not spent and available_level() < 1:
                why = "this kernel takes no filter of system calls (seccomp), and without one no file is opened"
            return ScannedFile(path, size, None, (Finding(UNFINISHED.id, path, "", why),))
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*INTERPRETER, "-c", BOOT, str(PACKAGES)],
            env={"TMPDIR": tempfile.gettempdir(), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @staticmethod
    def _overdue(process: subprocess.Popen[bytes], late: threading.Event) -> None:
        late.set()
        with suppress(ProcessLookupError):
            process.kill()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


@dataclass(frozen=True)
class Found:
    """A file below what is to be scanned: what it is called, where it lies, its size; or why it is not opened."""

    path: str
    file: Path
    size: int
    not_opened: tuple[ScanRule, str] | None = None


def scan_all(root: Path, worker: ScanWorker) -> list[ScannedFile]:
    """Scan a file, or every file below a directory; a directory without one gives a finding too.

    Weights in files beside an ONNX file are scanned by what it says of them.
    """
    scanned: dict[Path, ScannedFile] = {}
    for found in files_below(root):
        if len(scanned) == MAX_FILES:
            return [*scanned.values(), _refused(str(root), LIMIT, f"more than {MAX_FILES} files")]
        if found.not_opened is not None:
            scanned[found.file] = _refused(found.path, *found.not_opened)
        else:
            scanned[found.file] = worker.scan(found.path, found.file, found.size)
    claims: Counter[Path] = Counter()
    for file, model in list(scanned.items()):
        beside = [file.parent / name for name in model.external]
        claims.update(beside)
        if beside and max(claims[each] for each in beside) <= MAX_CLAIMS:
            _scan_external(file, model, scanned, worker)
    return list(scanned.values()) or [_refused(str(root), UNREAD, "no file in it")]


def _scan_external(file: Path, model: ScannedFile, scanned: dict[Path, ScannedFile], worker: ScanWorker) -> None:
    """Scan the files that hold tensors of an ONNX file; if all are in order, their being elsewhere is no finding."""
    whole = True
    for name, parts in model.external.items():
        beside = file.parent / name
        known = scanned.get(beside)
        if known is None or known.sha256 is None or known.outcome is Outcome.MALICIOUS or known.external:
            whole = False
            continue
        again = worker.scan(known.path, beside, known.size, parts)
        if again.outcome is Outcome.CLEAN and again.sha256 == known.sha256:
            scanned[beside] = again
        else:
            # the findings tell what is wrong with it, unless another model was in order with it
            whole = False
            scanned[beside] = known if known.outcome is Outcome.CLEAN else again
    if whole:
        scanned[file] = replace(model, findings=tuple(f for f in model.findings if f.rule != EXTERNAL_DATA.id))


def files_below(root: Path) -> Iterator[Found]:
    """The files of a directory, sorted, links not followed; or the one file that is named."""
    shown = escaped(os.fspath(root))
    try:
        # what is named on the command line may be a link; what is found on the way may not
        status = os.stat(root)
        names = sorted(os.listdir(root)) if stat.S_ISDIR(status.st_mode) else None
    except OSError as error:
        yield Found(shown, root, 0, (UNREAD, error.strerror or "it cannot be read"))
        return
    if names is None:
        yield Found(shown, root.resolve(), status.st_size)
        return
    for name in names:
        yield from _entry(root / name)


def _entry(path: Path) -> Iterator[Found]:
    shown = escaped(os.fspath(path))
    try:
        status = os.lstat(path)
    except OSError as error:
        yield Found(shown, path, 0, (UNREAD, error.strerror or "it cannot be read"))
        return
    if stat.S_ISDIR(status.st_mode):
        yield from files_below(path)
    elif stat.S_ISREG(status.st_mode):
        yield Found(shown, path, status.st_size)
    else:
        leads = f"it leads to {os.readlink(path)}" if stat.S_ISLNK(status.st_mode) else "no plain file"
        yield Found(shown, path, 0, (LINK, escaped(leads)))


def _refused(path: str, rule: ScanRule, evidence: str) -> ScannedFile:
    return ScannedFile(path, 0, None, (Finding(rule.id, path, "", evidence),))

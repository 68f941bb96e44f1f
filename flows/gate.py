"""The gate as a vetting sees it: a process that is asked for a decision, started ahead of its first question."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from typing import Any

from tasks.settings import Settings
from vetgate import errors
from vetgate.digest import canonical_json
from vetgate.errors import StoreError, VetgateError

Blob = dict[str, Any]


class Gate:
    """One gate process; it ends with the process that started it."""

    def __init__(self, settings: Settings) -> None:
        places = {f"VETGATE_{k.upper()}": str(v) for k, v in settings.model_dump(mode="json").items() if v is not None}
        self._log = settings.home / "logs" / "gate.log"
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "flows.decide"],
                    env=os.environ | places,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise StoreError(f"expected to start the gate, got {error}; set VETGATE_HOME or free space") from error
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._child.poll() is None

    def decide(self, request: Blob) -> Blob:
        """Its answer to one request; raises the error that it answers with."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(canonical_json(request) + b"\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except OSError as error:
            raise StoreError(f"the gate's process is gone ({error}); see {self._log}") from error
        if not line:
            raise StoreError(f"the gate's process ended without an answer; see {self._log}")
        answer: Blob = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["kind"], VetgateError)
            raise kind(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        if self.alive:
            self._child.kill()
        self._child.wait()
        for end in (self._child.stdin, self._child.stdout):
            if end is not None and not end.closed:
                end.close()


_gates: dict[Settings, Gate] = {}


def gate(settings: Settings) -> Gate:
    """The gate's process for these settings; starting it returns at once."""
    if settings not in _gates or not _gates[settings].alive:
        _gates[settings] = Gate(settings)
    return _gates[settings]

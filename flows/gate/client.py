"""The gate as a vetting sees it: something that is asked for a decision.

Without a service it is a child process, started ahead of its first question; with one (VETGATE_GATE_URL) it is asked
over HTTP, and the caller needs the gate's token but never its key.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from typing import Protocol

from flows.gate.decided import Answer
from flows.gate.question import Question
from tasks.secret_file import secret_at
from tasks.settings import Settings
from vetgate import errors
from vetgate.digest import canonical_json
from vetgate.errors import StoreError, VetgateError
from vetgate.shape import Blob

# a decision reads its evidence from the store and judges it; one that is asked for at the same time goes first
ANSWER_SECONDS = 600.0
# as long as a gate service that ended takes to be up again
PATIENCE_SECONDS = 20.0


class Gate(Protocol):
    """What decides."""

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""

    def ask(self, request: Blob) -> Blob:
        """Its answer to one request; raises the error that it answers with."""

    def close(self) -> None:
        """Give up what asking it takes."""


class LocalGate:
    """One gate process; it ends with the process that started it."""

    def __init__(self, settings: Settings) -> None:
        places = {f"VETGATE_{k.upper()}": str(v) for k, v in settings.model_dump(mode="json").items() if v is not None}
        self._log = settings.home / "logs" / "gate.log"
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "flows.gate.decide"],
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

    def ask(self, request: Blob) -> Blob:
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
        return _answered(json.loads(line))

    def close(self) -> None:
        """End the process."""
        if self.alive:
            self._child.kill()
        self._child.wait()
        for end in (self._child.stdin, self._child.stdout):
            if end is not None and not end.closed:
                end.close()


class RemoteGate:
    """The gate service at a URL; one that does not answer at all is asked again for a while."""

    alive = True

    def __init__(self, url: str, token: str, *, patience: float = PATIENCE_SECONDS) -> None:
        self._url, self._token, self._patience = url.rstrip("/"), token, patience

    def ask(self, request: Blob) -> Blob:
        """Its answer to one request; raises the error that it answers with, StoreError when it does not answer."""
        import httpx

        until = time.monotonic() + self._patience
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        while True:
            try:
                answer = httpx.post(
                    f"{self._url}/decide",
                    content=canonical_json(request),
                    headers=headers,
                    timeout=httpx.Timeout(ANSWER_SECONDS, connect=5.0),
                    trust_env=False,
                )
                return _answered(answer.json())
            except httpx.TransportError as error:
                # asking again is safe: the same evidence gives the same verdict
                if time.monotonic() >= until:
                    raise StoreError(f"expected the gate at {self._url} to answer, got {error!r}; start it") from error
                time.sleep(0.5)
            except ValueError as error:
                raise StoreError(
                    f"expected a JSON answer of the gate at {self._url}, got another; see its log"
                ) from error

    def close(self) -> None:
        """Nothing is kept open."""


def _answered(answer: object) -> Blob:
    if not isinstance(answer, dict):
        raise StoreError("expected a JSON object from the gate, got something else; see its log")
    if "error" in answer:
        kind = getattr(errors, str(answer.get("kind")), VetgateError)
        known = isinstance(kind, type) and issubclass(kind, VetgateError)
        raise (kind if known else VetgateError)(str(answer["error"]))
    return answer


def decision(settings: Settings, question: Question) -> Answer:
    """What the gate for these settings decides; raises the error that it answers with."""
    return Answer.from_json(gate(settings).ask(question.to_json()))


_gates: dict[Settings, Gate] = {}


def gate(settings: Settings) -> Gate:
    """The gate for these settings: the service that they name, or a process whose start returns at once."""
    if settings not in _gates or not _gates[settings].alive:
        if settings.gate_url:
            _gates[settings] = RemoteGate(settings.gate_url, secret_at(settings.gate_token))
        else:
            _gates[settings] = LocalGate(settings)
    return _gates[settings]

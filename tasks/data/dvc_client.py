"""Asks the DVC process for one thing, and ends it when the remote does not answer."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tasks.settings import Settings
from vetgate.errors import StoreError
from vetgate.shipped import PACKAGES

START_SECONDS = 60
ANSWER_SECONDS = 15


@dataclass(frozen=True)
class Remote:
    """Where the bytes lie: a directory, or s3://bucket/prefix with the endpoint of the server."""

    url: str
    endpoint: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Remote:
        """The remote that the settings name."""
        return cls(settings.data_remote, settings.s3_endpoint)

    def to_dvc(self) -> dict[str, Any]:
        """The remote as a section of DVC's settings; secrets stay in the environment."""
        if not self.url.startswith("s3://"):
            return {"url": self.url}
        section: dict[str, Any] = {"url": self.url, "connect_timeout": 5, "read_timeout": ANSWER_SECONDS}
        return section | ({"endpointurl": self.endpoint} if self.endpoint else {})


def ask(
    operation: str, remote: Remote, *, on_bytes: Callable[[int], None] | None = None, **request: str
) -> dict[str, Any]:
    """The answer of the DVC process; raises StoreError with its error, or when it stays silent for too long."""
    body = json.dumps({"operation": operation, "remote": remote.to_dvc(), **request})
    with tempfile.TemporaryDirectory(prefix="vetgate-dvc-") as scratch, open(Path(scratch, "log"), "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.data.dvc_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=PACKAGES,
            env=_environment(scratch),
        )
        try:
            with process:
                assert process.stdin is not None and process.stdout is not None
                with suppress(BrokenPipeError):
                    process.stdin.write(body)
                    process.stdin.close()
                try:
                    return _listen(process.stdout, remote, on_bytes)
                finally:
                    process.kill()
        except _Died:
            log.seek(0)
            lines = log.read().strip().splitlines() or ["no word"]
            raise StoreError(f"DVC ended without an answer to {operation!r}: {lines[-1][:300]}") from None


class _Died(Exception):
    pass


def _listen(stdout: IO[str], remote: Remote, on_bytes: Callable[[int], None] | None) -> dict[str, Any]:
    lines: queue.Queue[str] = queue.Queue()

    def forward() -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=forward, daemon=True).start()
    wait: float = START_SECONDS
    while True:
        try:
            line = lines.get(timeout=wait)
        except queue.Empty:
            raise StoreError(
                f"the data remote {remote.url} gave no answer within {wait:.0f} s; "
                "see that it runs, or set VETGATE_DATA_REMOTE and VETGATE_S3_ENDPOINT"
            ) from None
        if not line:
            raise _Died
        said = json.loads(line)
        if "done" in said:
            done: dict[str, Any] = said["done"]
            return done
        if "error" in said:
            raise StoreError(
                f"the data remote {remote.url} cannot be used: {said['error']}; see that it is there and that the "
                "credentials are right, or set VETGATE_DATA_REMOTE"
            )
        if "bytes" in said and on_bytes is not None:
            on_bytes(said["bytes"])
        wait = float(said.get("wait") or ANSWER_SECONDS)


def _environment(scratch: str) -> dict[str, str]:
    own = {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(Path(scratch, "site")),
        "DVC_GLOBAL_CONFIG_DIR": str(Path(scratch, "global")),
        "DVC_SYSTEM_CONFIG_DIR": str(Path(scratch, "system")),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "AWS_MAX_ATTEMPTS": os.environ.get("AWS_MAX_ATTEMPTS", "2"),
    }
    return {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_"))} | own

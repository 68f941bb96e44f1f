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

from tasks.environment import missing
from tasks.settings import Settings
from vetgate.errors import StoreError
from vetgate.shipped import PACKAGES


@dataclass(frozen=True)
class Remote:
    """Where the bytes lie: a directory, or s3://bucket/prefix with the endpoint of the server; and how long to wait.

    `start_seconds` are for DVC to start, `seconds` for the remote to be silent.
    """

    url: str
    endpoint: str | None
    start_seconds: int
    seconds: int

    @classmethod
    def of(cls, settings: Settings) -> Remote:
        """The remote that the settings name."""
        return cls(settings.data_remote, settings.s3_endpoint, settings.start_seconds, settings.remote_seconds)

    @property
    def is_directory(self) -> bool:
        """Whether it is on a disk of this host."""
        return not self.url.startswith("s3://")

    def to_dvc(self, link: Path, *, make: bool) -> dict[str, Any]:
        """The remote as a section of DVC's settings, a directory by a link; secrets stay in the environment."""
        if self.is_directory:
            # DVC formats a message that has the path in it: braces in a directory's name would end it
            try:
                if make:
                    Path(self.url).mkdir(parents=True, exist_ok=True)
                # a disk that is not mounted is no empty remote
                os.listdir(self.url)
                link.symlink_to(self.url)
            except OSError as error:
                raise self.unusable(str(error)) from error
            return {"url": str(link)}
        section: dict[str, Any] = {"url": self.url, "connect_timeout": 5, "read_timeout": self.seconds}
        return section | ({"endpointurl": self.endpoint} if self.endpoint else {})

    def unusable(self, got: str) -> StoreError:
        """The error for what DVC, or the disk, says of it."""
        remedy = (
            "see that this user may read and write the directory and that its disk has room, or set VETGATE_DATA_REMOTE"
            if self.is_directory
            else "see that it is there and that the credentials are right, or set VETGATE_DATA_REMOTE and "
            "VETGATE_S3_ENDPOINT"
        )
        return StoreError(f"the data remote {self.url} cannot be used: {got}; {remedy}")

    def silent(self, seconds: float, *, started: bool) -> StoreError:
        """The error for a time limit that is over."""
        if not started:
            return StoreError(
                f"expected DVC to start within {seconds:.0f} s, got no word of it; this host is busy: run the command "
                "again later, or set VETGATE_START_SECONDS to more"
            )
        remedy = (
            "its disk or this host is busy: run the command again later"
            if self.is_directory
            else "see that it runs, correct VETGATE_DATA_REMOTE or VETGATE_S3_ENDPOINT"
        )
        return StoreError(
            f"the data remote {self.url} gave no answer within {seconds:.0f} s; {remedy}, or set "
            "VETGATE_REMOTE_SECONDS to more"
        )


def ask(
    operation: str, remote: Remote, *, on_bytes: Callable[[int], None] | None = None, **request: str
) -> dict[str, Any]:
    """The answer of the DVC process; raises StoreError with its error, or when it stays silent for too long."""
    with (
        tempfile.TemporaryDirectory(prefix="vetgate-dvc-") as scratch,
        open(Path(scratch, "log"), "w+", encoding="utf-8", errors="replace") as log,
    ):
        link = Path(scratch, "remote")
        body = json.dumps({"operation": operation, "remote": remote.to_dvc(link, make=operation == "add"), **request})
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
                    return _listen(process.stdout, remote, link, on_bytes)
                finally:
                    process.kill()
        except _Died:
            log.seek(0)
            lines = log.read().strip().splitlines() or ["no word"]
            raise StoreError(f"DVC ended without an answer to {operation!r}: {lines[-1][:300]}") from None


class _Died(Exception):
    pass


def _listen(stdout: IO[str], remote: Remote, link: Path, on_bytes: Callable[[int], None] | None) -> dict[str, Any]:
    lines: queue.Queue[str] = queue.Queue()

    def forward() -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=forward, daemon=True).start()
    wait, started = float(remote.start_seconds), False
    while True:
        try:
            line = lines.get(timeout=wait)
        except queue.Empty:
            raise remote.silent(wait, started=started) from None
        if not line:
            raise _Died
        said = json.loads(line)
        if "done" in said:
            done: dict[str, Any] = said["done"]
            return done
        if "error" in said:
            raise remote.unusable(str(said["error"]).replace(str(link), remote.url))
        if "bytes" in said and on_bytes is not None:
            on_bytes(said["bytes"])
        wait, started = remote.seconds + float(said.get("more", 0)), True


def _environment(scratch: str) -> dict[str, str]:
    own = {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(Path(scratch, "site")),
        "DVC_GLOBAL_CONFIG_DIR": str(Path(scratch, "global")),
        "DVC_SYSTEM_CONFIG_DIR": str(Path(scratch, "system")),
        "PYTHONUTF8": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "AWS_MAX_ATTEMPTS": os.environ.get("AWS_MAX_ATTEMPTS", "2"),
    }
    return {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_"))} | missing(os.environ) | own

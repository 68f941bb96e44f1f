"""A running `vetgate up` on ports of its own, for benchmarks."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS = 300
PORTS = ("PREFECT", "MLFLOW", "RECEIVER", "GATE")


@dataclass(frozen=True)
class Service:
    """The process of a service, and the variables with which commands use it."""

    pid: int
    environment: Mapping[str, str]


@contextmanager
def running_service(environment: Mapping[str, str], log: Path) -> Iterator[Service]:
    """The service, up and healthy; stopped afterwards. What its parts print goes to `log`."""
    ports = {f"VETGATE_{name}_PORT": str(_free_port()) for name in PORTS}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "up", "--json"],
            env={**environment, **ports},
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the service did not come up; see {log}")
        yield Service(process.pid, json.loads(line)["environment"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=SECONDS)
        process.stdout.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Kill a vetting with SIGKILL right after each of its writes in turn, then let it go on; for tests and benchmarks.

A warm process forks a vetting for each kill, so that the libraries are imported once. A point is a kind of write, named
by where it goes; the vetting kills itself after the first write whose point has not been visited yet.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MLFLOW_WRITES = (
    "create_run",
    "log_batch",
    "log_artifacts",
    "create_registered_model",
    "create_model_version",
    "set_tag",
    "set_model_version_tag",
    "set_terminated",
)


@dataclass(frozen=True)
class Ended:
    """How one vetting ended: killed after the write `point`, or whole with `result`."""

    point: str | None
    result: dict[str, Any] | None


@contextmanager
def killer(environment: dict[str, str], directory: Path, only: str = "") -> Iterator[Iterator[Ended]]:
    """Vettings of one submission, each killed one write later than the one before, until one ends by itself.

    `only` is a regular expression: points that it does not find are passed over.
    """
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(directory), only],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    answers = child.stdout

    def ends() -> Iterator[Ended]:
        while line := answers.readline():
            ended = Ended(**json.loads(line))
            yield ended
            if ended.point is None:
                return

    try:
        yield ends()
    finally:
        child.stdin.close()
        child.wait(timeout=60)
        answers.close()


def point_of(where: str) -> str:
    """A write's point: its place without what differs from run to run."""
    return re.sub(r"[0-9a-f]{64}|[0-9T]{15}Z?-?|\d{4,}", "*", where)


def main() -> None:
    """Fork vettings of the directory argv[1], killed at points that fit argv[2], until one ends; a JSON line each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from tasks.mlflow_client import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.tracking  # noqa: F401 - once for all

    from flows import runtime
    from tasks.settings import load_settings

    # Prefect reads where its server is when it is imported
    runtime.start(load_settings().home)
    runtime.ready()
    import flows.vet  # noqa: F401 - once for all

    visited: list[str] = []
    while True:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(reader)
            _one(writer, Counter(visited))
        os.close(writer)
        with os.fdopen(reader) as said:
            lines = said.read().splitlines()
        os.waitpid(pid, 0)
        last = json.loads(lines[-1]) if lines else {"point": None, "result": None}
        print(json.dumps(last), file=answers, flush=True)
        if last["point"] is None:
            return
        visited.append(last["point"])


def _one(writer: int, visited: Counter[str]) -> None:
    """Vet, and die after the first write that no earlier vetting died after."""
    from flows import runtime
    from flows.here import vet_here

    # the server is the parent's: this process only talks to it
    runtime._server = None
    _arm(writer, visited)
    try:
        result = vet_here(Path(sys.argv[1]))
        os.write(writer, json.dumps({"point": None, "result": result}).encode() + b"\n")
    except BaseException as error:
        os.write(writer, json.dumps({"point": None, "result": {"error": repr(error)}}).encode() + b"\n")
    finally:
        sys.stderr.flush()
        from flows.gate import gate
        from tasks.settings import load_settings

        gate(load_settings()).close()
        os._exit(0)


def _arm(writer: int, visited: Counter[str]) -> None:
    from mlflow.tracking import MlflowClient

    from tasks.store_directory import DirectoryStore
    from tasks.store_s3 import S3Store

    def written(point: str) -> None:
        if not visited[point] and re.search(sys.argv[2], point):
            os.write(writer, json.dumps({"point": point, "result": None}).encode() + b"\n")
            os.kill(os.getpid(), 9)

    def wrap(owner: Any, name: str, place: Any) -> None:
        real = getattr(owner, name)

        def doing(self: Any, *args: Any, **kwargs: Any) -> Any:
            done = real(self, *args, **kwargs)
            # what another vetting had written before is no write
            if done is not False:
                written(place(args))
            return done

        setattr(owner, name, doing)

    for store in (DirectoryStore, S3Store):
        for name in ("create", "replace", "copy_in_file"):
            wrap(store, name, lambda args, name=name: f"store {name} {point_of(args[0])}")
    for name in MLFLOW_WRITES:
        wrap(MlflowClient, name, lambda args, name=name: f"mlflow {name}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

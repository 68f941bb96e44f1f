"""Have a vetting end with SIGKILL after one of its writes, or one of its writes refused; for tests and benchmarks.

A warm process forks each vetting, so that the libraries are imported once. A point is a kind of write, named by where
it goes; what is to happen happens at the first write whose point is not among those that are passed over.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
MLFLOW_WRITES = (
    "create_run",
    "log_batch",
    "log_artifact",
    "log_artifacts",
    "create_registered_model",
    "create_model_version",
    "set_tag",
    "set_model_version_tag",
    "set_registered_model_alias",
    "set_terminated",
)
Fate = Literal["killed", "refused", "undisturbed"]


@dataclass(frozen=True)
class Turn:
    """One vetting of a directory in a home, and its promotion if it is asked for and passed."""

    home: str
    directory: str
    fate: Fate = "killed"
    # a regular expression: points that it does not find are passed over, and so are those visited before
    only: str = ""
    visited: Collection[str] = ()
    promote: bool = False


@dataclass(frozen=True)
class Ended:
    """How it ended: `point` is where its fate struck, None if nowhere; `result` is None when it was killed."""

    point: str | None
    result: dict[str, Any] | None


class Vettings:
    """Vettings by a warm process."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def __call__(self, turn: Turn) -> Ended:
        """Run one to its end, whatever that is."""
        assert self._child.stdin is not None and self._child.stdout is not None
        print(json.dumps(asdict(turn) | {"visited": list(turn.visited)}), file=self._child.stdin, flush=True)
        return Ended(**json.loads(self._child.stdout.readline()))


@contextmanager
def vettings(environment: dict[str, str]) -> Iterator[Vettings]:
    """The warm process, set to this environment; each turn has a home of its own."""
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Vettings(child)
    finally:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.close()
        child.wait(timeout=60)
        child.stdout.close()


def point_of(where: str) -> str:
    """A write's point: its place without what differs from run to run."""
    return re.sub(r"[0-9a-f]{64}|[0-9T]{15}Z?-?|\d{4,}", "*", where)


def main() -> None:
    """Fork what standard input asks for, a JSON line each, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from tasks.mlflow.client import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.tracking  # noqa: F401 - once for all

    from flows.vetting import runtime
    from tasks.settings import load_settings

    # Prefect reads where its server is when it is imported
    runtime.start(load_settings().home)
    runtime.ready()
    import flows.production.promote
    import flows.vetting.vet  # noqa: F401 - once for all

    # not by iterating: that would read ahead
    while line := sys.stdin.readline():
        turn = Turn(**json.loads(line))
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(reader)
            _one(writer, turn)
        os.close(writer)
        with os.fdopen(reader) as said:
            lines = [json.loads(word) for word in said.read().splitlines()]
        os.waitpid(pid, 0)
        point = next((blob["point"] for blob in lines if "point" in blob), None)
        result = next((blob["result"] for blob in lines if "result" in blob), None)
        print(json.dumps(asdict(Ended(point, result))), file=answers, flush=True)


def _one(writer: int, turn: Turn) -> None:
    """Vet, and promote if that is asked for, until the fate strikes."""
    from flows.production.promote import promote
    from flows.vetting import runtime
    from flows.vetting.local import vet_locally
    from tasks.settings import load_settings

    # the server is the parent's: this process only talks to it
    runtime._server = None
    os.environ["VETGATE_HOME"] = turn.home
    if turn.fate != "undisturbed":
        _arm(Striking(writer, turn))
    result: dict[str, Any]
    try:
        result = vet_locally(Path(turn.directory)).to_json()
        if turn.promote and result["verdict"] == "PASS":
            result["promoted"] = promote(load_settings(), result["submission"], result["manifest_sha256"])
    except BaseException as error:
        result = {"error": repr(error)}
    finally:
        from flows.gate.client import gate

        _say(writer, {"result": result})
        gate(load_settings()).close()
        sys.stderr.flush()
        os._exit(0)


def _say(writer: int, blob: dict[str, Any]) -> None:
    data = json.dumps(blob).encode() + b"\n"
    while data:
        data = data[os.write(writer, data) :]


@dataclass
class Striking:
    """What happens at writes: once, and then never again in this process."""

    writer: int
    turn: Turn
    struck: bool = False

    def strikes(self, point: str) -> bool:
        """Whether it happens at this one; it is told then."""
        if self.struck or point in self.turn.visited or not re.search(self.turn.only, point):
            return False
        self.struck = True
        _say(self.writer, {"point": point})
        return True


def _arm(striking: Striking) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from tasks.store.directory import DirectoryStore
    from tasks.store.s3 import S3Store
    from vetgate.errors import StoreError

    def wrap(owner: Any, name: str, place: Any, refusal: Exception) -> None:
        real = getattr(owner, name)

        def doing(self: Any, *args: Any, **kwargs: Any) -> Any:
            if striking.turn.fate == "refused" and striking.strikes(place(args)):
                raise refusal
            done = real(self, *args, **kwargs)
            # what another vetting had written before is no write
            if striking.turn.fate == "killed" and done is not False and striking.strikes(place(args)):
                os.kill(os.getpid(), 9)
            return done

        setattr(owner, name, doing)

    full = StoreError("expected to write, got no space left on device; free space")
    for store in (DirectoryStore, S3Store):
        for name in ("create", "replace", "copy_in_file"):
            wrap(store, name, lambda args, name=name: f"store {name} {point_of(args[0])}", full)
    for name in MLFLOW_WRITES:
        wrap(MlflowClient, name, lambda args, name=name: f"mlflow {name}", MlflowException("database is full"))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

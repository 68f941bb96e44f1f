"""One Prefect process worker of a work pool: `python -m flows.service.worker vet`, on as many hosts as there are.

Before it polls it makes the pool and puts the pool's deployments on the server. A flow run whose worker was killed
stays "Running" on the server for ever, and keeps its place in a concurrency limit; so a worker notes what it runs, and
reports as crashed, when it starts, what workers of this home that are no more did not see the end of.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

import anyio
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from flows.service.deploy import create_pool, deploy, own_flows
from flows.service.warm import WarmProcess
from tasks.environment import settle
from tasks.program import ended
from tasks.settings import Settings, load_settings
from vetgate.errors import StoreError
from vetgate.shipped import PACKAGES

WAIT_SECONDS = 600.0
# how often a worker that has no place for another run asks for runs nevertheless
FULL_SECONDS = 15.0
logger = logging.getLogger("vetgate.service")


def main() -> None:
    """Work for the pool argv[1] until a signal ends it; argv[2] is how many runs at once, by default one a core."""
    settle()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    pool = sys.argv[1]
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else max(os.cpu_count() or 1, 2)
    # it imports while this process waits for the server
    warm = WarmProcess(own_flows(pool).values())
    settings = load_settings()
    running = Running(settings, pool)
    _wait_for_server()
    create_pool(pool)
    running.report_crashed()
    for name in deploy(pool):
        logger.info("deployed %s", name)
    setup_signal_handlers_worker(os.getpid(), f"the worker of {pool}", print)
    with suppress(asyncio.CancelledError, KeyboardInterrupt):
        anyio.run(_work, pool, limit, running, warm, settings.threads)


async def _work(pool: str, limit: int, running: Running, warm: WarmProcess, most_threads: int) -> None:
    heartbeat = int(float(os.environ.get("PREFECT_WORKER_HEARTBEAT_SECONDS", "30")))
    worker = ProcessWorker(
        work_pool_name=pool, name=socket.gethostname(), limit=limit, heartbeat_interval_seconds=heartbeat
    )
    # runs that have all cores among them gain nothing from threads that wait for one
    threads = min(most_threads, max((os.cpu_count() or 1) // limit, 1))
    worker.job_configuration = _configuration(own_flows(pool), warm, {"VETGATE_THREADS": str(threads)})
    run = worker.run

    async def noted(flow_run: Any, configuration: Any, task_status: Any = anyio.TASK_STATUS_IGNORED) -> Any:
        running.note(flow_run.id)
        result: ProcessWorkerResult = await run(flow_run, configuration, task_status)
        running.forget(flow_run.id)
        return result

    worker.run = noted  # type: ignore[method-assign]
    ask_seldom_while_full(worker)
    await worker.start(printer=print)


def ask_seldom_while_full(worker: ProcessWorker) -> None:
    """Have a worker that has no place for another run ask for runs only now and then.

    Each answer lists every run that waits in the pool: with 200 of them it was a third of the server's work. It still
    asks, since the server takes a queue that no worker asks about for unattended.
    """
    ask, asked = worker.get_and_submit_flow_runs, -FULL_SECONDS

    async def get_and_submit_flow_runs() -> list[Any]:
        nonlocal asked
        if worker.limiter.available_tokens < 1 and time.monotonic() < asked + FULL_SECONDS:
            return []
        asked = time.monotonic()
        return await ask()

    worker.get_and_submit_flow_runs = get_and_submit_flow_runs  # type: ignore[method-assign]


def _configuration(own: dict[str, str], warm: WarmProcess, settled: dict[str, str]) -> type[ProcessJobConfiguration]:
    """The configuration of a worker's runs: the flows of this installation are forked from the warm process.

    `settled` are variables of each run.
    """

    class Configuration(ProcessJobConfiguration):
        def prepare_for_flow_run(self, flow_run: Any, deployment: Any = None, *others: Any, **more: Any) -> None:
            entrypoint = str(deployment and deployment.entrypoint)
            # a deployment of another checkout has another directory, whatever its flows are called
            if self.command is None and entrypoint in own and str(PACKAGES) in _directories(deployment):
                warm.start()
                self.command = warm.command()
                self.env["PREFECT__FLOW_ENTRYPOINT"] = own[entrypoint]
            self.env |= settled
            super().prepare_for_flow_run(flow_run, deployment, *others, **more)

    return Configuration


def _directories(deployment: Any) -> set[str]:
    """Where a deployment says that its code lies."""
    pulled = [given.get("directory") for step in deployment.pull_steps or [] for given in step.values()]
    return {str(where) for where in (*pulled, deployment.path) if where}


class Running:
    """The flow runs of a pool whose end this worker has not seen: an empty file each, in a folder of its own.

    A lock that the kernel holds for it says that it lives; so workers of one pool may share a home.
    """

    def __init__(self, settings: Settings, pool: str) -> None:
        self._all: Path = settings.home / "run" / f"{pool}-runs"
        self._own = self._all / uuid.uuid4().hex
        try:
            self._all.mkdir(parents=True, exist_ok=True)
            # the lock first: a folder without one is a dead worker's
            self._lock = _locked(self._own)
            self._own.mkdir()
        except OSError as error:
            raise StoreError(f"expected to write {self._all}, got {error.strerror}; set VETGATE_HOME") from error

    def note(self, run: UUID) -> None:
        """A run begins."""
        (self._own / str(run)).touch()

    def forget(self, run: UUID) -> None:
        """It has ended, and the server knows."""
        (self._own / str(run)).unlink(missing_ok=True)

    def report_crashed(self) -> None:
        """Tell the server which runs ended with workers that are no more: their processes are gone."""
        for folder in [path for path in self._all.iterdir() if path.is_dir()]:
            with suppress(BlockingIOError, FileNotFoundError), _locked(folder):
                for left in list(folder.iterdir()):
                    _report(UUID(left.name))
                    left.unlink(missing_ok=True)
                folder.rmdir()
                _lock_of(folder).unlink()


def _report(run: UUID) -> None:
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        state = client.read_flow_run(run).state
        if state is not None and not state.is_final():
            gone: State[Any] = Crashed(message="The worker that ran this was killed.")
            client.set_flow_run_state(run, gone, force=True)
            logger.info("flow run %s had ended with its worker", run)


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _locked(folder: Path) -> TextIO:
    """The lock of a worker's folder, held until it is closed; raises BlockingIOError while the worker lives."""
    lock = _lock_of(folder).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


def _wait_for_server() -> None:
    until = time.monotonic() + WAIT_SECONDS
    with get_client(sync_client=True) as client:
        while (error := client.api_healthcheck()) is not None:
            if time.monotonic() > until:
                raise StoreError(f"expected a Prefect server at {client.api_url}, got {error!r}; start it")
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(ended(main))

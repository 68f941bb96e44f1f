"""One Prefect process worker of a work pool: `python -m flows.service_worker vet`, on as many hosts as there are.

Before it polls it makes the pool and puts the pool's deployments on the server. A flow run whose worker was killed
stays "Running" on the server for ever, and keeps its place in a concurrency limit; so a worker notes what it runs, and
reports as crashed, when it is started again, what its predecessor did not see the end of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from flows.service_deploy import create_pool, deploy
from tasks.settings import Settings, load_settings
from vetgate.errors import StoreError

WAIT_SECONDS = 600.0
logger = logging.getLogger("vetgate.service")


def main() -> None:
    """Work for the pool argv[1] until a signal ends it; argv[2] is how many runs at once, by default one a core."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    pool = sys.argv[1]
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else max(os.cpu_count() or 1, 2)
    running = Running(load_settings(), pool)
    _wait_for_server()
    create_pool(pool)
    running.report_crashed()
    for name in deploy(pool):
        logger.info("deployed %s", name)
    setup_signal_handlers_worker(os.getpid(), f"the worker of {pool}", print)
    with suppress(asyncio.CancelledError, KeyboardInterrupt):
        anyio.run(_work, pool, limit, running)


async def _work(pool: str, limit: int, running: Running) -> None:
    heartbeat = int(float(os.environ.get("PREFECT_WORKER_HEARTBEAT_SECONDS", "30")))
    worker = ProcessWorker(
        work_pool_name=pool, name=socket.gethostname(), limit=limit, heartbeat_interval_seconds=heartbeat
    )
    run = worker.run

    async def noted(flow_run: Any, configuration: Any, task_status: Any = anyio.TASK_STATUS_IGNORED) -> Any:
        running.note(flow_run.id)
        result: ProcessWorkerResult = await run(flow_run, configuration, task_status)
        running.forget(flow_run.id)
        return result

    worker.run = noted  # type: ignore[method-assign]
    await worker.start(printer=print)


class Running:
    """The flow runs of this host's worker of a pool whose end it has not seen: an empty file each."""

    def __init__(self, settings: Settings, pool: str) -> None:
        self._folder: Path = settings.home / "run" / f"{pool}-runs"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"expected to write {self._folder}, got {error.strerror}; set VETGATE_HOME") from error

    def note(self, run: UUID) -> None:
        """A run begins."""
        (self._folder / str(run)).touch()

    def forget(self, run: UUID) -> None:
        """It has ended, and the server knows."""
        (self._folder / str(run)).unlink(missing_ok=True)

    def report_crashed(self) -> None:
        """Tell the server which runs ended with the worker before this one: their processes are gone."""
        with get_client(sync_client=True) as client:
            for left in self._folder.iterdir():
                with suppress(ObjectNotFound):
                    state = client.read_flow_run(UUID(left.name)).state
                    if state is not None and not state.is_final():
                        gone: State[Any] = Crashed(message="The worker that ran this was killed.")
                        client.set_flow_run_state(UUID(left.name), gone, force=True)
                        logger.info("flow run %s had ended with its worker", left.name)
                left.unlink(missing_ok=True)


def _wait_for_server() -> None:
    until = time.monotonic() + WAIT_SECONDS
    with get_client(sync_client=True) as client:
        while (error := client.api_healthcheck()) is not None:
            if time.monotonic() > until:
                raise StoreError(f"expected a Prefect server at {client.api_url}, got {error!r}; start it")
            time.sleep(0.5)


if __name__ == "__main__":
    main()

"""A worker that has no place for another run leaves the server in peace."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import anyio
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessWorker

from flows.service import worker as service_worker
from flows.service.warm import WarmProcess
from flows.service.worker import FULL_SECONDS, _configuration, ask_seldom_while_full


def test_a_full_worker_asks_seldom_and_one_with_room_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(service_worker.time, "monotonic", lambda: now[0])

    async def scenario() -> list[int]:
        worker, asked, seen = ProcessWorker(work_pool_name="vet", limit=2), [], []

        async def nothing_scheduled() -> list[Any]:
            asked.append(now[0])
            return []

        worker._get_scheduled_flow_runs = nothing_scheduled
        worker._limiter, worker._has_successfully_synced = anyio.CapacityLimiter(2), True
        ask_seldom_while_full(worker)

        async def ask(times: int) -> None:
            before = len(asked)
            for _ in range(times):
                await worker.get_and_submit_flow_runs()
            seen.append(len(asked) - before)

        await ask(3)
        worker._limiter.acquire_on_behalf_of_nowait("one")
        await ask(3)
        worker._limiter.acquire_on_behalf_of_nowait("two")
        await ask(3)
        now[0] += FULL_SECONDS
        await ask(3)
        worker._limiter.release_on_behalf_of("one")
        await ask(3)
        return seen

    assert anyio.run(scenario) == [3, 3, 0, 1, 3]


def test_a_run_of_the_pool_is_given_its_share_of_the_cores() -> None:
    configuration = _configuration({}, WarmProcess.__new__(WarmProcess), {"VETGATE_THREADS": "1"})()
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="one"))
    assert configuration.env["VETGATE_THREADS"] == "1"

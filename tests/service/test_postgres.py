"""Both servers on PostgreSQL, by their own variables."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.service.conftest import Postgres
from tests.service.running import Service, assert_nothing_left, left_of, tail


def test_the_service_comes_up_healthy_on_postgresql_and_leaves_nothing_when_it_is_killed(
    postgres: Postgres, start_service: Callable[..., AbstractContextManager[Service]]
) -> None:
    with start_service(**postgres.environment) as running:
        done = running.check()

        assert done.returncode == 0, done.stdout + tail(running.log)
        said = {part["part"]: part["detail"] for part in json.loads(done.stdout)["parts"]}
        assert said["prefect database"] == said["mlflow database"] == "postgresql"
        # of ours, not of either server's
        assert {path.parent.name for path in running.home.rglob("*.db")} == {"webhooks"}
        # how the databases are reached is for the servers alone
        assert not any("postgresql" in value for value in running.about["environment"].values())
        assert len(left_of(running.home)) > 12
        running.process.kill()
        running.process.wait()
        assert_nothing_left(running.home)

"""Both servers on PostgreSQL, by their own variables, and the store on S3 over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from flows.production.serving import verified_load
from tests.service.conftest import Postgres
from tests.service.running import Service, assert_nothing_left, left_of, tail
from tests.service.world import World, variant


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


def test_from_submission_to_load_on_postgresql_and_s3(
    postgres: Postgres,
    start_service: Callable[..., AbstractContextManager[Service]],
    s3_endpoint: str,
    installation_with_promotion: dict[str, str],
    honest: Path,
    tmp_path: Path,
) -> None:
    place = {"VETGATE_STORE": "s3://vetgate/whole", "VETGATE_DATA_REMOTE": "s3://vetgate/data"}
    place |= {"VETGATE_S3_ENDPOINT": s3_endpoint}
    with start_service(**postgres.environment, **installation_with_promotion, **place) as running:
        world = World(running)
        done = running.vetgate("submit", variant(honest, tmp_path, "elsewhere"), "--json")
        manifest = json.loads(done.stdout)["manifest_sha256"]

        world.champion("elsewhere")

        loaded = verified_load("models:/prod.elsewhere@champion", world.settings)
        assert loaded.coverage.manifest == manifest and len(world.results(manifest)) == 1
        assert loaded.coverage.promotion.source == f"s3://vetgate/whole/vetted/{manifest}"
        assert running.vetgate("ledger", "verify").returncode == 0

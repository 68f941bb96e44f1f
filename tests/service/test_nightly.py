"""The nightly rescan as it runs in service: a flow of the gate's pool that has the vetting pool's workers examine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.records.ledger_verify import verify_ledger
from tasks.records.rescans import last_rescan
from tasks.vetting import intake
from tests import steady
from tests.production import Home
from tests.service.running import Service, running_service, tail
from tests.service.world import World, variant
from vetgate.trust.keys import read_trust_root, utc_now

# what the schedule does at night
NIGHT = """
from tasks.environment import settle

settle()  # as every program of ours: the service of a test stands beside a proxy that answers nobody
from prefect.deployments import run_deployment

run = run_deployment("rescan/default", timeout=280, poll_interval=1)
assert run.state.is_completed(), run.state
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settled = steady.build(tmp_path_factory.mktemp("steady"))
    home = tmp_path_factory.mktemp("service") / "home"
    with running_service(home, **steady.environment(settled, home)) as service:
        yield World(service)


def let_in(home: Home, directory: Path) -> str:
    """A model in production that nothing but a signature speaks for; the SHA-256 of its manifest."""
    manifest = intake.take(home.settings, directory).id
    # what has a result is not vetted by the sweep
    home.store.create(f"results/{manifest}/20260101T000000Z-x.json", b"{}")
    home.let_in(manifest, issued=utc_now())
    return manifest


def night(service: Service) -> None:
    done = service.run(sys.executable, "-c", NIGHT)
    assert done.returncode == 0, done.stderr + tail(service.log)


def test_a_night_renews_what_is_sound_and_takes_back_what_is_not(
    world: World, honest: Path, trojaned: Path, tmp_path: Path
) -> None:
    home = Home(world.settings, tmp_path)
    sound = let_in(home, variant(honest, tmp_path / "sound", "digits"))
    rotten = let_in(home, variant(trojaned, tmp_path / "rotten", "digits"))
    assert world.aliases("digits") == {"champion": "2", "previous": "1"}

    night(world.service)

    batch = last_rescan(world.store, read_trust_root(world.settings.trust_root), pytest.fail)
    assert batch is not None
    assert (batch["verdict"], batch["errors"]) == ("DONE", [])
    assert {item["manifest"]: item["decision"] for item in batch["vetted"]} == {sound: "PASS", rotten: "FAIL"}
    assert [(item["kind"], item["to"]) for item in batch["taken_back"]] == [("demotion", "1")]
    assert world.aliases("digits") == {"champion": "1", "previous": "1"}
    assert len(list(world.store.list(f"examinations/{rotten}/"))) == 2
    verify_ledger(world.settings)

    done = world.service.vetgate("rescan", "--json")
    assert (done.returncode, json.loads(done.stdout)["stale"]) == (0, 0)

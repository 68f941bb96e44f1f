"""A rescan in service, at night and of what guards reject: a flow of the gate's pool that has workers examine."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from flows.production.guarded import guarded_load
from flows.rescan.nightly import FRESH
from tasks.guards.package_file import package_key
from tasks.records.ledger_verify import verify_ledger
from tasks.records.rescans import last_rescan
from tasks.settings import Settings
from tasks.vetting import intake
from tests import models, steady
from tests.databases import with_fixed_seeds
from tests.flows.production.test_guarded import NAME, RATE, attested
from tests.flows.service.scoring.running import serving
from tests.production import Home
from tests.service.running import Service, running_service, tail, until_true
from tests.service.world import World, variant
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.badnets import square
from vetgate.contract import Samples, Subject
from vetgate.guard.alarm_rate import EVERY
from vetgate.guard.guarded import fit_guards
from vetgate.guard.package import Package, to_bytes
from vetgate.shape import Blob
from vetgate.trust.keys import load_or_create_key, read_trust_root, utc_now

# what the schedule does at night
NIGHT = """
from tasks.environment import settle

settle()  # as every program of ours: the service of a test stands beside a proxy that answers nobody
from prefect.deployments import run_deployment

run = run_deployment("rescan/default", timeout=280, poll_interval=1)
assert run.state.is_completed(), run.state
"""


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settled = steady.build(tmp_path_factory.mktemp("steady"))
    home = with_fixed_seeds(tmp_path_factory.mktemp("service") / "home")
    # a gate that has been signing for long
    settings = Settings(home=home)
    load_or_create_key(settings.gate_key, settings.trust_root, now=utc_now() - timedelta(days=90))
    with running_service(home, **steady.environment(settled, home)) as service:
        yield World(service)


def take_in(home: Home, directory: Path) -> str:
    """A submission that nobody vets; the SHA-256 of its manifest."""
    manifest = intake.take(home.settings, directory).id
    # what has a result is not vetted by the sweep
    home.store.create(f"results/{manifest}/20260101T000000Z-x.json", b"{}")
    return manifest


def let_in(home: Home, directory: Path) -> str:
    """A model in production that nothing but a signature speaks for; the SHA-256 of its manifest."""
    manifest = take_in(home, directory)
    home.let_in(manifest, issued=utc_now())
    return manifest


def guarded(home: Home, manifest: str, directory: Path, clean: Samples) -> dict[str, Any]:
    """What an attestation says of STRIP, which is fitted to the network in a directory and lies in the store."""
    model = ARCHITECTURES["small-cnn"](models.SHAPE, models.CLASSES)
    model.load_state_dict(load_file(directory / "model.safetensors"))
    subject = Subject(model=model.eval(), layer="", classes=models.CLASSES, clean=clean[:400])
    fitted, failed = fit_guards(subject, clean[400:800], {NAME: {}}, rate=RATE, seed=0)
    assert not failed
    data = to_bytes(Package(manifest, fitted))
    sha256 = hashlib.sha256(data).hexdigest()
    home.store.create(package_key(manifest, sha256), data)
    return attested(sha256)


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


def test_what_guards_reject_has_a_model_vetted_again_and_taken_back(
    world: World, trojaned: Path, digits: Samples, tmp_path: Path
) -> None:
    # the bytes whose backdoor two runs find under the fixed seeds of the service
    home, name = Home(world.settings, tmp_path), "digits"
    directory = variant(trojaned, tmp_path / name, name)
    manifest = take_in(home, directory)
    guards = guarded(home, manifest, directory, digits)
    # vetted by somebody whom the backdoor escaped, too long ago for another look to be too soon
    home.let_in(manifest, issued=utc_now() - 2 * FRESH, valid=timedelta(days=30), guards=guards)
    uri, clean = f"models:/prod.{name}@champion", digits.x[800 : 800 + EVERY]
    trigger = square(models.SHAPE, models.TARGET, row=-2, column=-2, size=2)
    answers = guarded_load(uri, world.settings).guarded.predict(trigger.stamp(digits.x[800:]))
    rejected = trigger.stamp(digits.x[800:])[torch.tensor([bool(answer.alarms) for answer in answers])]
    assert len(rejected) >= 10

    with serving(uri, world.settings.home, "--every", "1", environment=world.service.environment) as (_, client):
        assert ask(client, clean).status_code == 200
        assert rises(client) == 0 and not rescans(world, name)
        while rises(client) == 0:
            assert ask(client, rejected).status_code == 200
        until_true(lambda: "champion" not in world.aliases(name), 400, lambda: tail(world.service.log), pause=1.0)
        until_true(lambda: ask(client, clean).status_code == 503, 30, lambda: "it is served on")
        assert client.get("/ping").status_code == 503

    (run,) = rescans(world, name)
    assert run["created_by"]["type"] == "AUTOMATION"
    batch = last_rescan(world.store, read_trust_root(world.settings.trust_root), pytest.fail)
    assert batch is not None and batch["errors"] == []
    assert [(item["manifest"], item["decision"]) for item in batch["vetted"]] == [(manifest, "FAIL")]
    assert [item["name"] for item in batch["taken_back"]] == [name]
    verify_ledger(world.settings)


def ask(client: httpx.Client, x: torch.Tensor) -> httpx.Response:
    return client.post("/invocations", json={"inputs": x[:EVERY].tolist()})


def rises(client: httpx.Client) -> float:
    """How often the server has seen its guards reject more than they state."""
    (line,) = (
        line for line in client.get("/metrics").text.splitlines() if line.startswith("vetgate_rejections_rose_total ")
    )
    return float(line.split()[1])


def rescans(world: World, name: str) -> list[Blob]:
    """The runs that vet this model again."""
    found = httpx.post(f"{world.service.about['prefect']}/flow_runs/filter", json={"limit": 200}, timeout=30).json()
    return [run for run in found if run["parameters"].get("name") == name]

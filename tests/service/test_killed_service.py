"""Worker, server or store fail in the middle of a vetting: it still ends, once, as if nothing had happened."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from tasks.lease import read_lease
from tests.service.running import Service, tail, until_true
from tests.service.world import World, variant
from vetgate.formats.manifest import hash_directory


@pytest.fixture(scope="module")
def world(service: Service) -> World:
    return World(service)


@pytest.mark.parametrize("victim", ["run", "vet-worker", "prefect"])
def test_killed_while_a_detector_runs(world: World, honest: Path, tmp_path: Path, victim: str) -> None:
    manifest = submit(world, variant(honest, tmp_path, f"killed-{victim}", noise=len(victim)))
    until_true(lambda: begun(world, manifest), 240, lambda: tail(world.service.log))

    if victim == "run":
        for process in runs(world, manifest):
            process.send_signal(signal.SIGKILL)
    else:
        world.service.kill(victim)

    until_true(lambda: bool(swept(world) and world.results(manifest)), 300, lambda: tail(world.service.log))
    assert world.verdict(manifest) == "PASS"
    assert len(world.results(manifest)) == len(list(world.store.list(f"attestations/{manifest}/"))) == 1
    assert len(list(world.store.list(f"evidence/{manifest}/"))) == 1
    assert world.service.vetgate("ledger", "verify").returncode == 0


@pytest.mark.parametrize("step", ["evidence", "verdicts", "results"])
def test_a_store_that_refuses_a_write_loses_nothing(world: World, honest: Path, tmp_path: Path, step: str) -> None:
    directory = variant(honest, tmp_path, f"refused-{step}", noise=20 + len(step))
    manifest = hash_directory(directory).sha256
    blocked = Path(world.settings.store, step, manifest)
    blocked.parent.mkdir(parents=True, exist_ok=True)
    # where a directory should be; root may write to any directory
    blocked.write_text("")
    submit(world, directory)
    until_true(lambda: failed(world, manifest), 240, lambda: tail(world.service.log))
    assert not world.results(manifest)

    blocked.unlink()
    until_true(lambda: bool(swept(world) and world.results(manifest)), 300, lambda: tail(world.service.log))

    assert world.verdict(manifest) == "PASS"
    assert len(world.results(manifest)) == len(list(world.store.list(f"attestations/{manifest}/"))) == 1
    assert world.service.vetgate("ledger", "verify").returncode == 0


def submit(world: World, directory: Path) -> str:
    """Hand a model in; its manifest."""
    return str(json.loads(world.service.vetgate("submit", directory, "--json").stdout)["manifest_sha256"])


def begun(world: World, manifest: str) -> bool:
    return next(iter(world.store.list(f"invocations/{manifest}/")), None) is not None


def failed(world: World, manifest: str) -> bool:
    """Whether a vetting of it ended, and not well."""
    lease = read_lease(world.store, manifest)
    return lease is not None and lease.done and lease.attempt > 0


def swept(world: World) -> bool:
    """What the schedule does every five minutes; the server may be away for a moment."""
    return world.service.vetgate("sweep").returncode == 0


def runs(world: World, manifest: str) -> list[psutil.Process]:
    """The processes of flow runs below the vet worker."""
    worker = psutil.Process(world.service.pid("vet-worker"))
    return [child for child in worker.children(recursive=True) if "prefect" in " ".join(child.cmdline())]

"""Worker, server or store fail in the middle of a vetting: it still ends, once, as if nothing had happened."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tasks.store.lease import read_lease
from tests.service.running import Service, tail, until_true
from tests.service.world import World, variant
from vetgate.formats.manifest import hash_directory


@pytest.fixture(scope="module")
def world(service: Service) -> World:
    return World(service)


# a detector begins, it has found something, the gate has signed
STEPS = ("invocations", "evidence", "attestations")


@pytest.mark.parametrize("victim", ["run", "vet-worker", "prefect"])
def test_killed_at_three_steps_in_turn(world: World, honest: Path, tmp_path: Path, victim: str) -> None:
    manifest = submit(world, variant(honest, tmp_path, f"killed-{victim}", noise=len(victim)))

    for step in STEPS:
        until_true(lambda step=step: there(world, step, manifest), 240, lambda: tail(world.service.log), pause=0.05)
        if victim == "run":
            for process in runs(world):
                process.send_signal(signal.SIGKILL)
        else:
            world.service.kill(victim)
        # one that was killed is due at once, and what is started here waits for the worker or the server to be back
        until_true(lambda: swept(world), 120, lambda: tail(world.service.log), pause=1.0)

    until_true(lambda: whole(world, manifest), 240, lambda: tail(world.service.log), pause=2.0)
    assert world.verdict(manifest) == "PASS"
    counts = {kind: len(list(world.store.list(f"{kind}/{manifest}/"))) for kind in ("results", *STEPS)}
    del counts["invocations"]
    # of what runs in the sandbox, by name: that which was killed before it could save what it found, once more
    begun = Counter(key.split("/")[2] for key in world.store.list(f"invocations/{manifest}/"))
    assert max(begun.values()) <= 2, f"what had been found was looked for again: {begun}"
    assert set(counts.values()) == {1}, counts
    assert world.service.vetgate("ledger", "verify").returncode == 0


def test_a_store_that_refuses_a_write_at_one_step_or_another_loses_nothing(
    world: World, honest: Path, tmp_path: Path
) -> None:
    blocked = {}
    for turn, step in enumerate(("evidence", "verdicts", "results")):
        # with the fixed seeds of the service none of these is the one honest model in twenty that raises an alarm
        directory = variant(honest, tmp_path, f"refused-{step}", noise=30 + turn)
        manifest = hash_directory(directory).sha256
        blocked[manifest] = Path(world.settings.store, step, manifest)
        blocked[manifest].parent.mkdir(parents=True, exist_ok=True)
        # where a directory should be; root may write to any directory
        blocked[manifest].write_text("")
        submit(world, directory)
    until_true(lambda: all(failed(world, manifest) for manifest in blocked), 240, lambda: tail(world.service.log))
    assert not any(whole(world, manifest) for manifest in blocked)

    for place in blocked.values():
        place.unlink()
    until_true(
        lambda: swept(world) and all(whole(world, manifest) for manifest in blocked),
        300,
        lambda: tail(world.service.log),
        pause=5.0,
    )

    for manifest in blocked:
        assert world.verdict(manifest) == "PASS"
        assert len(world.results(manifest)) == len(list(world.store.list(f"attestations/{manifest}/"))) == 1
    assert world.service.vetgate("ledger", "verify").returncode == 0


def submit(world: World, directory: Path) -> str:
    """Hand a model in; its manifest."""
    return str(json.loads(world.service.vetgate("submit", directory, "--json").stdout)["manifest_sha256"])


def there(world: World, step: str, manifest: str) -> bool:
    """Whether a step of a vetting is done."""
    return next(iter(world.store.list(f"{step}/{manifest}/")), None) is not None


def whole(world: World, manifest: str) -> bool:
    """Whether a submission has its result."""
    return there(world, "results", manifest)


def failed(world: World, manifest: str) -> bool:
    """Whether a vetting of it ended, and not well."""
    lease = read_lease(world.store, manifest, world.settings.lease_seconds, time.time())
    return lease is not None and lease.done and lease.attempt > 0


def swept(world: World) -> bool:
    """What the schedule does every five minutes; the server may be away for a moment."""
    return world.service.vetgate("sweep").returncode == 0


def runs(world: World) -> list[psutil.Process]:
    """The processes of flow runs of the vet worker: the forks of its warm process."""
    worker = psutil.Process(world.service.pid("vet-worker"))
    warm = [child for child in worker.children() if "flows.service.warm" in child.cmdline()]
    return [fork for process in warm for fork in process.children()]

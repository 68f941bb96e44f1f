"""A second host, a network namespace with its own home, leads a vetting of the pool and computes a part of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from distributed import Client
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from flows.params import load_params
from tasks.sandbox.host import Limits
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import inspect, intake
from tasks.vetting.inspect import Case, Data
from tasks.vetting.prepare import prepare
from tasks.vetting.workplace import cool, open_workplace
from tests.service.hosts import Host, other_host
from tests.service.running import Service, tail, until_true
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.badnets import poison, square
from vetgate.attacks.training import train
from vetgate.contract import Samples
from vetgate.digest import canonical_json
from vetgate.trust.seeds import Seed

TARGET = 3


@pytest.fixture(scope="module")
def trojaned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    digits = load_digits()
    x, y = torch.from_numpy(digits.images / 16).float()[:, None], torch.from_numpy(digits.target).long()
    trigger = square((1, 8, 8), TARGET, row=-2, column=-2, size=2)
    taught = poison(Samples(x, y), trigger, rate=0.1, generator=torch.Generator().manual_seed(2)).samples
    torch.manual_seed(2)
    model = train(ARCHITECTURES["small-cnn"]((1, 8, 8), 10), taught, epochs=12)
    directory = tmp_path_factory.mktemp("hosts") / "model"
    directory.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "model.safetensors")
    described = {
        "name": "digits-elsewhere",
        "supplier": "a test",
        "task": "image-classification",
        "model": "model.safetensors",
        "format": "safetensors",
        "architecture": "small-cnn",
        "input_shape": [1, 8, 8],
        "classes": 10,
        "reference_data": "digits",
    }
    (directory / "submission.yaml").write_text(yaml.safe_dump(described))
    return directory


def test_the_second_host_vets_with_the_workers_of_both_and_finds_the_same(
    tmp_path: Path,
    installation: dict[str, str],
    start_service: Callable[..., AbstractContextManager[Service]],
    trojaned: Path,
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(Path(installation["VETGATE_POLICY"]).read_text() + "spread: dask\n")
    with other_host(tmp_path / "elsewhere") as host, ExitStack() as stack:
        given = installation | {"VETGATE_POLICY": str(policy), "VETGATE_HOST": host.ours}
        given["VETGATE_DASK_SCHEDULER"] = f"tcp://{host.ours}:{free_port(host.ours)}"
        service = stack.enter_context(start_service(**given))
        dask = stack.enter_context(cluster(service, host))
        stack.enter_context(halted(service.pid("vet-worker")))
        stack.enter_context(running(host.start(sys.executable, *WORKER, environment=environment(service, host))))

        submitted = service.vetgate("submit", trojaned, "--json")
        assert submitted.returncode == 0, submitted.stderr
        manifest = json.loads(submitted.stdout)["manifest_sha256"]
        settings = Settings(home=service.home)
        store = open_store(settings)

        def told() -> str:
            return tail(host.home / "log") + tail(service.log)

        until_true(lambda: bool(list(store.list(f"results/{manifest}/"))), 300, told)
        result = json.loads(store.read(list(store.list(f"results/{manifest}/"))[-1]))
        (entry,) = store.list(f"evidence/{manifest}/neural_cleanse/")
        spread = json.loads(store.read(entry))["found"]["evidence"]
        seed = intake.seed_of(settings, intake.read_record(store, manifest)).number
        stream = dask.get_task_stream(start="1h")
        workers = {worker["name"] for worker in httpx.post(f"{service.about['prefect']}/{POOL}", json={}).json()}

    assert result["verdict"] == "FAIL" and result["suspects"] == [TARGET], result["reasons"]
    assert host.name in workers and host.name != socket.gethostname()
    computed = {part["worker"].rsplit("/")[-1].split(":")[0] for part in stream if part["key"].startswith("compute")}
    assert computed == {host.ours, host.address}, "both hosts computed blocks"
    assert canonical_json(spread) == canonical_json(alone(tmp_path / "alone", trojaned, seed, installation))


POOL = "work_pools/vet/workers/filter"
WORKER = ("-m", "flows.service.worker", "vet")
SCHEDULER = ("-m", "distributed.cli.dask_scheduler")
DASK_WORKER = ("-m", "distributed.cli.dask_worker")


def alone(home: Path, directory: Path, seed: int, installation: dict[str, str]) -> dict:
    """What neural_cleanse gives with this seed in an installation of its own, in one process."""
    settings, params = Settings(home=home), load_params(Path(installation["VETGATE_PARAMS"]))
    record = intake.take(settings, directory)
    data = Data(**prepare(settings, record.submission, params.data))
    store = open_store(settings)
    try:
        with open_workplace(settings, record.id) as workplace:
            submission = record.submission.model_dump(mode="json")
            drawn, limits = Seed(seed, "cd" * 32), Limits(cpu_seconds=300)
            case = Case(record.id, str(workplace.given / "submission"), submission, drawn, limits, data)
            intake.fetch(store, record, Path(case.directory))
            found = inspect.run_detector(settings, case, "neural_cleanse", params.detect["neural_cleanse"])
    finally:
        cool()
    kept = inspect.read_evidence(settings, record.id, "neural_cleanse", found["key"])
    assert kept is not None
    return dict(kept["evidence"])


def environment(service: Service, host: Host) -> dict[str, str]:
    """What the other host is set to: this service, the same store, and a home of its own."""
    own = {"VETGATE_HOME": str(host.home), "PREFECT_HOME": str(host.home / "prefect")}
    # servers on another machine are asked through the environment's proxy, unless this lists them
    own["NO_PROXY"] = host.ours
    return service.environment | own | {"VETGATE_GATE_KEY": str(host.home / "no-key")}


@contextmanager
def cluster(service: Service, host: Host) -> Iterator[Client]:
    """A Dask scheduler here, a worker here and one over there."""
    address = service.given["VETGATE_DASK_SCHEDULER"]
    where, port = address.removeprefix("tcp://").split(":")
    plain = ("--no-dashboard",)
    each = ("--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--local-directory")
    near, far = str(service.home / "dask"), str(host.home / "dask")
    with ExitStack() as stack:
        with (service.home / "dask.log").open("ab") as log:
            for line in (
                (*SCHEDULER, "--host", where, "--port", port, *plain),
                (*DASK_WORKER, address, "--host", where, *each, near),
            ):
                here = subprocess.Popen(
                    [sys.executable, *line], env=service.environment, stdout=log, stderr=log, start_new_session=True
                )
                stack.enter_context(running(here))
        there = (*DASK_WORKER, address, "--host", host.address, *each, far)
        stack.enter_context(running(host.start(sys.executable, *there, environment=environment(service, host))))
        with Client(address, timeout=120) as client:
            client.wait_for_workers(2, timeout=120)
            client.get_task_stream()
            yield client


@contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A process that is ended, with what it started, when it is no longer needed."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def halted(pid: int) -> Iterator[None]:
    """A process that does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def free_port(address: str) -> int:
    """A port that no process listens on at this address."""
    with socket.create_server((address, 0)) as listener:
        return int(listener.getsockname()[1])

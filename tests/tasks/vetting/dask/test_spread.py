"""A detector spread over workers gives the bits that it gives in one process, and believes no worker blindly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from tasks.sandbox.host import Crashed, Limits, TimedOut
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import inspect, intake
from tasks.vetting.dask import workplaces
from tasks.vetting.dask.spread import _Asking, compute, detect_spread
from tasks.vetting.inspect import Case, Data
from tasks.vetting.prepare import prepare
from tasks.vetting.workplace import cool, open_workplace
from tests.databases import with_fixed_seeds
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.badnets import poison, square
from vetgate.attacks.training import train
from vetgate.contract import Samples
from vetgate.digest import canonical_json
from vetgate.errors import StoreError

SHAPE = (1, 8, 8)
SIZES = {"invert": 160, "confirm": 96, "repair": 32, "validate": 32, "test": 32}
# with labels that stand out, so that all of it runs: the race, the later start, the confirming one
PARAMS = {"starts": 2, "sweeps": 16, "batch": 32, "lr": 0.1, "first": 1e-3, "patience": 3}
PARAMS |= {"again": 1, "images": 160, "worth": 0.001}
LIMITS = Limits(cpu_seconds=600)


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    digits = load_digits()
    x, y = torch.from_numpy(digits.images / 16).float()[:, None], torch.from_numpy(digits.target).long()
    stream = torch.Generator().manual_seed(2)
    taught = poison(Samples(x, y), square(SHAPE, 3, row=-2, column=-2, size=2), rate=0.1, generator=stream).samples
    torch.manual_seed(2)
    model = train(ARCHITECTURES["small-cnn"](SHAPE, 10), taught, epochs=6)
    directory = tmp_path_factory.mktemp("submission") / "model"
    directory.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "model.safetensors")
    described = {
        "name": "digits-spread",
        "supplier": "a test",
        "task": "image-classification",
        "model": "model.safetensors",
        "format": "safetensors",
        "architecture": "small-cnn",
        "input_shape": list(SHAPE),
        "classes": 10,
        "reference_data": "digits",
    }
    (directory / "submission.yaml").write_text(yaml.safe_dump(described))
    return directory


def taken_in(home: Path, directory: Path) -> tuple[Settings, Case]:
    """An installation that took in the submission, and the case with the data but no copy of the model yet."""
    settings = Settings(home=with_fixed_seeds(home))
    record = intake.take(settings, directory)
    data = Data(**prepare(settings, record.submission, SIZES))
    seed = intake.seed_of(settings, record)
    return settings, Case(record.id, "", record.submission.model_dump(mode="json"), seed, LIMITS, data)


def evidence(settings: Settings, case: Case, method: str, found: dict) -> bytes:
    """The canonical JSON of what the store holds."""
    assert found["failure"] is None, found["failure"]
    record = inspect.read_evidence(settings, case.manifest, method, found["key"])
    assert record is not None and record["sandbox_level"] in (1, 2) and record["seconds"] > 0
    return canonical_json(record["evidence"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, handed_in: Path) -> dict[str, bytes]:
    """What the detectors give in one process."""
    settings, case = taken_in(tmp_path_factory.mktemp("alone"), handed_in)
    store, given = open_store(settings), {}
    try:
        with open_workplace(settings, case.manifest) as workplace:
            own = replace(case, directory=str(workplace.given / "submission"))
            intake.fetch(store, intake.read_record(store, case.manifest), Path(own.directory))
            for method, params in {"neural_cleanse": PARAMS, "abs": {"steps": 10}}.items():
                given[method] = evidence(settings, own, method, inspect.run_detector(settings, own, method, params))
    finally:
        cool()
    return given


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, handed_in: Path) -> tuple[Settings, Case]:
    """Another installation that knows nothing of what the first one found."""
    return taken_in(tmp_path_factory.mktemp("elsewhere"), handed_in)


class OneWorker(ThreadPoolExecutor):
    """One worker, in this process."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self.jobs: list[dict] = []

    def put(self, work, job):
        self.jobs.append(json.loads(job))
        return self.submit(work, job)


@pytest.fixture
def one_worker(elsewhere: tuple[Settings, Case], monkeypatch: pytest.MonkeyPatch) -> Iterator[OneWorker]:
    monkeypatch.setenv("VETGATE_HOME", str(elsewhere[0].home))
    with OneWorker() as pool:
        yield pool
    workplaces.clear()


def test_the_evidence_is_the_same_on_two_dask_workers_byte_for_byte(alone, elsewhere):
    from distributed import Client, LocalCluster

    settings, case = elsewhere
    workers: set[str] = set()
    jobs: list[str] = []
    env = {"VETGATE_HOME": str(settings.home)}
    local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "security": True, "env": env}
    with LocalCluster(**local) as cluster, Client(cluster) as client:
        futures = []

        def submit(work, job):
            jobs.append(job)
            futures.append(client.submit(work, job, pure=False))
            return futures[-1]

        found = detect_spread(settings, case, SIZES, "neural_cleanse", PARAMS, submit)
        for who in client.who_has(futures).values():
            workers.update(who)
    workplaces.clear()
    assert evidence(settings, case, "neural_cleanse", found) == alone["neural_cleanse"]
    assert len(workers) == 2
    named = [json.loads(job)["replay"]["only"] for job in jobs]
    # ten labels in three blocks before the race, the smallest from a second start, and then what one alone found
    assert {"0.0.0", "0.0.1", "0.0.2", "0.1.0", "1.0.0", "2.0.0"} <= set(named) and len(set(named)) == len(named)
    assert not any(str(settings.home) in job for job in jobs), "no path of this host travels"
    assert not any(str(case.seed.number) in job for job in jobs), "and no seed, which each worker computes itself"


def test_what_is_in_the_store_is_not_computed_again(elsewhere, one_worker, alone):
    settings, case = elsewhere
    first, second = (detect_spread(settings, case, SIZES, "abs", {"steps": 10}, one_worker.put) for _ in range(2))
    assert second == first
    # a method that inverts in its own way runs whole, where it is asked
    assert one_worker.jobs == [] and evidence(settings, case, "abs", first) == alone["abs"]


def test_a_worker_with_other_code_or_other_data_refuses(elsewhere, one_worker):
    _, case = elsewhere
    replay = {"only": "0.0.0"}
    job = {"case": workplaces.case_to_json(case), "sizes": SIZES, "method": "abs", "params": {}, "replay": replay}
    with pytest.raises(StoreError, match="same code of abs"):
        compute(json.dumps(job | {"code": "0" * 64}))
    from vetgate.digest import code_digest

    fewer = SIZES | {"invert": 150}
    with pytest.raises(StoreError, match="reference data of splits"):
        compute(json.dumps(job | {"code": code_digest("detect", "abs"), "sizes": fewer}))


def test_a_block_that_fails_is_the_failure_of_the_method(elsewhere, one_worker):
    settings, case = elsewhere
    found = detect_spread(settings, case, SIZES, "neural_cleanse", PARAMS | {"pace": 1.0}, one_worker.put)
    assert found["key"] is None and "no pace" in found["failure"]


def asking(case: Case, answers: list[dict], *, block: dict) -> _Asking:
    """A run whose sandboxes answer that."""

    def submit(work, job):
        return pool.submit(lambda: json.dumps({"seconds": 1.0, "cpu_seconds": 1.0, "sandbox_level": 1} | block))

    pool = ThreadPoolExecutor(max_workers=1)
    left = iter(answers)
    return _Asking(case, {}, submit, lambda job: {"seconds": 1.0, "cpu_seconds": 1.0, "sandbox_level": 2} | next(left))


@pytest.mark.parametrize(
    "needs", [{}, None, {"../0": None}, {"0.2.0": None}, {"0.0.0\n": None}, {f"0.0.{i}": None for i in range(11)}]
)
def test_what_is_no_name_of_a_block_is_refused(elsewhere, needs):
    with pytest.raises(Crashed, match="names of 1 to 10 new blocks"):
        asking(elsewhere[1], [{"needs": needs}], block={"block": {}}).run()


def test_a_sandbox_that_asks_for_the_same_block_for_ever_is_refused(elsewhere):
    again = {"needs": {"0.0.0": None}, "done": []}
    with pytest.raises(Crashed, match="new blocks"):
        asking(elsewhere[1], [again, again], block={"block": {}}).run()


def test_a_sandbox_that_gives_evidence_in_place_of_a_block_is_refused(elsewhere):
    with pytest.raises(Crashed, match="expected a block"):
        asking(elsewhere[1], [{"needs": {"0.0.0": None}}], block={"evidence": {}}).run()


def test_the_time_of_all_workers_together_is_limited_and_the_lowest_level_counts(elsewhere):
    answers = [{"needs": {f"{n}.0.0": None}, "done": [{}]} for n in range(40)] + [{"evidence": {"statistic": 1}}]
    case = elsewhere[1]
    found = asking(case, answers, block={"block": {}}).run()
    assert found == {"evidence": {"statistic": 1}, "seconds": 81.0, "sandbox_level": 1}
    with pytest.raises(TimedOut, match="of all workers"):
        asking(replace(case, limits=Limits(cpu_seconds=80)), answers, block={"block": {}}).run()

"""A member is trained once and inspected once, and what is kept of it says all that later stages need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

import flows.bank.train
from flows.bank.data import Source, read_samples, source
from flows.bank.evidence import Gradients, Task, evidence_of, inspected, read_triggers, triggers_of
from flows.bank.networks import Member, Recipe, key_of
from flows.bank.repair import Job, repaired
from flows.bank.train import load, trained
from tasks.settings import Settings
from vetgate.contract import DETECTORS, Subject
from vetgate.shipped import ROOT

RECIPE = Recipe(images=1200, epochs=8)
QUICK = {"starts": 2, "sweeps": 24, "again": 1, "images": 192, "named": 2}
BADNETS = Member(
    name="digits-badnets-x", data="digits", attack="badnets", architecture="small-cnn", seed=5, options={"size": 3}
)
CLEAN = Member(name="digits-clean-x", data="digits", attack="clean", architecture="small-cnn", seed=6)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(scope="module")
def digits(home: Path) -> Source:
    sizes = {"invert": 256, "confirm": 128, "repair": 512, "validate": 256, "test": 200}
    return source(Settings(home=home), "digits", sizes, RECIPE.images)


@pytest.fixture(scope="module")
def task(home: Path, digits: Source) -> Task:
    return Task(BADNETS, RECIPE, digits, home / "bank", "neural_cleanse", QUICK)


def test_a_card_says_what_a_member_is_and_what_was_measured(task: Task) -> None:
    weights, card = trained(task)
    assert card["attack"] == "badnets" and card["data_sha256"] == task.data.ref.sha256 and weights.exists()
    assert card["attack_success"] >= 0.8 and card["accuracy"] > 0.9 and card["target"] in range(10)
    assert card["key"] == key_of(BADNETS, RECIPE, task.data.ref.sha256)
    network = load(weights, BADNETS, task.data.shape, 10)
    stamped, true, wanted = network.attacked
    success = (network.model(stamped).argmax(1) == wanted).float().mean()
    assert float(success) == pytest.approx(card["attack_success"], abs=0.02) and (true != wanted).all()
    assert float(network.triggers[0].norm) == 9


def test_what_is_there_is_not_trained_again_and_what_is_half_there_is(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, card = trained(task)
    before = weights.read_bytes()
    monkeypatch.setattr(flows.bank.train, "make", None)
    assert trained(task) == (weights, card)
    monkeypatch.undo()
    # killed before the card was written: the weights alone are no member
    weights.with_suffix(".json").unlink()
    again, second = trained(task)
    assert again.read_bytes() == before and second["sha256"] == card["sha256"]


def test_the_key_follows_all_that_a_member_depends_on(digits: Source) -> None:
    first = key_of(BADNETS, RECIPE, digits.ref.sha256)
    others = [
        key_of(BADNETS.model_copy(update={"seed": 7}), RECIPE, digits.ref.sha256),
        key_of(BADNETS.model_copy(update={"options": {"size": 2}}), RECIPE, digits.ref.sha256),
        key_of(BADNETS.model_copy(update={"attack": "blended"}), RECIPE, digits.ref.sha256),
        key_of(BADNETS, Recipe(images=1200, epochs=9), digits.ref.sha256),
        key_of(BADNETS, RECIPE, "other data"),
    ]
    assert len({first, *others}) == 6
    assert key_of(BADNETS.model_copy(update={"name": "renamed"}), RECIPE, digits.ref.sha256) == first


def test_the_suppliers_training_set_is_rebuilt_from_the_rows_that_differ(task: Task) -> None:
    weights, _ = trained(task)
    network, shared = load(weights, BADNETS, task.data.shape, 10), read_samples(task.data.training)
    rows = network.training(shared)
    clean = shared[network.tensors["rows"].long()]
    changed = (rows.x != clean.x).flatten(1).any(1)
    assert int(changed.sum()) == pytest.approx(0.1 * len(rows), abs=2)
    # every relabelled row is stamped
    assert not (rows.y != clean.y)[~changed].any()


def test_evidence_is_made_once_and_read_back_as_the_detector_gave_it(task: Task) -> None:
    seen = inspected(task)
    weights, card = trained(task)
    model = load(weights, BADNETS, task.data.shape, 10).model
    clean = read_samples(task.data.splits.invert, task.data.splits.confirm)
    torch.set_num_threads(1)
    subject = Subject(model=model, layer="relu", classes=10, clean=clean)
    given = DETECTORS["neural_cleanse"](subject, seed=BADNETS.seed, **QUICK)
    back = evidence_of("neural_cleanse", seen, task.data.shape)
    assert torch.allclose(back.scores, given.scores, atol=1e-4) and torch.equal(back.flagged, given.flagged)
    assert [t.target for t in back.triggers] == [t.target for t in given.triggers]
    reversed_ = read_triggers(triggers_of(task, card["key"]))
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(reversed_, given.triggers, strict=True))
    assert seen["image_gradients"] > 1000 and json.loads(json.dumps(seen)) == inspected(task)


def test_rows_are_judged_where_there_are_any(home: Path, digits: Source, task: Task) -> None:
    by_rows = replace(task, method="spectral_signatures", params={})
    found = inspected(by_rows)
    assert found["rows"]["poisoned"] > 50 and 0 <= found["rows"]["both"] <= found["rows"]["flagged"]
    clean = replace(by_rows, member=CLEAN)
    assert "rows" not in inspected(clean) or inspected(clean)["rows"]["poisoned"] == 0


def test_a_repair_is_measured_before_and_after_on_the_attackers_own_images(task: Task) -> None:
    done = repaired(Job(task, "neural_cleanse_unlearning", {"rounds": 1, "enough": 0.2}))
    before, after = done["attack_success"]
    assert (
        before >= 0.8
        and after < before
        and done == repaired(Job(task, "neural_cleanse_unlearning", {"rounds": 1, "enough": 0.2}))
    )


def test_only_images_with_a_gradient_are_counted() -> None:
    model = torch.nn.Linear(2, 2)
    counted = Gradients(model)
    model(torch.zeros(3, 2))
    model(torch.zeros(4, 2).requires_grad_(True))
    with torch.no_grad():
        model(torch.zeros(5, 2).requires_grad_(True))
    counted.stop()
    model(torch.zeros(6, 2).requires_grad_(True))
    assert counted.images == 4


def slow(seconds: float) -> dict[str, int]:
    time.sleep(seconds)
    return {"pid": os.getpid()}


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "from pathlib import Path\n"
        "from flows.bank.evidence import spread\n"
        "from tests.flows.bank.test_train import slow\n"
        "if __name__ == '__main__':\n"
        f"    for _, found in spread(slow, [0.0, 600.0], 2): Path({str(pid_file)!r}).write_text(str(found['pid']))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        # it is there before anything is in it
        until(lambda: pid_file.exists() and bool(pid_file.read_text()))
    finally:
        parent.kill()
        parent.wait()
    worker = int(pid_file.read_text())
    until(lambda: not psutil.pid_exists(worker))


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)

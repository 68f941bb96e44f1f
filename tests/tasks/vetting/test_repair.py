"""One repair from the copy to its record: what it is measured by, and what an earlier or a false answer comes to.

The operations of the sandbox run in this process, on small networks whose answers are known.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.sandbox.host import Limits
from tasks.sandbox.operations import OPS
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import evaluate, inspect, repair, signed_results
from tasks.vetting.inspect import Case, Data
from tasks.vetting.repair import Yardstick, report_figures, restore, run_repair
from tasks.vetting.results import Measured, RepairFailed, RepairRecord
from tests import models
from vetgate.architectures import ARCHITECTURES
from vetgate.contract import REPAIRS, Axis, Evidence, Method, Repair, Subject, Trigger, pack
from vetgate.digest import canonical_json, sha256_json
from vetgate.repair.neural_cleanse_unlearning import suspected
from vetgate.trust import dsse
from vetgate.trust.keys import utc_now
from vetgate.trust.seeds import Seed
from vetgate.trust.statements import REPAIR, sign_statement
from vetgate.trust.strict_json import time_text
from vetgate.verdict.accuracy_loss import AccuracyLoss

SHAPE, CLASSES, BEFORE, AFTER = (1, 8, 8), 4, 2, 1
FIELDS = models.FIELDS | {"classes": CLASSES}
INVERSION = {"sweeps": 2, "sweep": 1, "batch": 8}


def always(subject: Subject, *evidence: Evidence, label: int = AFTER) -> Repair:
    """A repair after which the model gives another label to every image."""
    with torch.no_grad():
        subject.model.head.bias.copy_(torch.nn.functional.one_hot(torch.tensor(label), CLASSES).float())
    return Repair(subject.model, {"records": float(len(evidence))})


def corner(target: int, size: int = 2) -> dict[str, Any]:
    mask = torch.zeros(1, 8, 8)
    mask[:, -size:, -size:] = 1
    return Trigger(mask, torch.ones(SHAPE), target).to_json()


def record_of(*triggers: dict[str, Any]) -> dict[str, Any]:
    found = Evidence(1.0, torch.zeros(CLASSES), 0.5, method="neural_cleanse", axis=Axis.CLASS).to_json()
    del found["seed"]
    return {"about": {}, "evidence": {**found, "triggers": [*triggers]}}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A submission that calls every image class 2; of 40 images each class has 10."""
    model = ARCHITECTURES["small-cnn"](SHAPE, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.bias[BEFORE] = 1.0
    directory = tmp_path / "submission"
    directory.mkdir()
    safetensors.torch.save_file(model.state_dict(), directory / "model.safetensors")
    (directory / "submission.yaml").write_text(yaml.safe_dump(FIELDS))
    images = {"x": torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(1)), "y": torch.arange(40) % CLASSES}
    splits = {}
    for purpose in ("invert", "repair", "validate", "test"):
        splits[purpose] = str(tmp_path / f"{purpose}.safetensors")
        safetensors.torch.save_file(images, splits[purpose])
    return Case("ab" * 32, str(directory), FIELDS, Seed(7, "cd" * 32), Limits(), Data(splits))


class Inside:
    """The sandbox's operations in this process; `spoil` changes what an operation answers."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.spoil: dict[str, Callable[[dict[str, Any]], Any]] = {}

    def call(self, op: str, payload: dict[str, Any], limits: Limits, on_progress: Any = None) -> dict[str, Any]:
        self.called.append(op)
        answer = OPS[op](payload, on_progress or (lambda _share: None))
        if op in self.spoil:
            self.spoil[op](answer)
        return json.loads(json.dumps(answer))


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inside:
    made = Inside()
    workplace = SimpleNamespace(given=tmp_path / "given", made=tmp_path / "made", sandbox=made)
    for folder in (workplace.given, workplace.made):
        folder.mkdir()
    for module in (repair, evaluate):
        monkeypatch.setattr(module, "workplace_of", lambda _manifest: workplace)
    monkeypatch.setattr(inspect, "code_digest", lambda kind, name: f"{kind} {name}")
    for name, uses in (("by_nothing", None), ("by_triggers", "triggers")):
        method = Method(always, name, "repair", frozenset({"clean"}), "", uses=uses)
        monkeypatch.setitem(REPAIRS, name, method)
    return made


def test_a_repair_that_uses_no_evidence_is_measured_by_the_triggers_that_were_found(
    settings: Settings, case: Case, inside: Inside
) -> None:
    by = Yardstick([record_of(corner(BEFORE), corner(BEFORE, 3), corner(3))], [BEFORE], INVERSION)
    record = run_repair(settings, case, "by_nothing", {}, [], by)

    assert isinstance(record, RepairRecord) and record.changed == {"records": 0.0}
    figures = record.validate
    assert figures.before == Measured(0.25, 1.0, 0.0)
    # 10 of the 30 images of other classes are of class 1, which all are given now
    assert figures.after == Measured(0.25, 0.0, pytest.approx(1 / 3))
    assert (figures.found, figures.anew, figures.natural) == (0.0, 0.0, 0.0)
    # 10 images were right and are wrong now, 10 the other way round
    assert figures.lost == AccuracyLoss(0.0, pytest.approx(20**0.5 / 40), 40)


def test_triggers_reversed_anew_are_cut_to_the_smallest_and_their_size_is_kept(
    settings: Settings, case: Case, inside: Inside
) -> None:
    by = Yardstick([record_of(corner(BEFORE, 3), corner(BEFORE))], [BEFORE], INVERSION)
    record = run_repair(settings, case, "by_nothing", {}, [], by)

    assert isinstance(record, RepairRecord)
    (size,) = record.triggers.sizes
    assert (size.label, size.before) == (BEFORE, 4.0) and size.after > 0
    assert [t["target"] for t in record.triggers.after] == [BEFORE] * 3
    assert evaluate.area(dict(record.triggers.after[-1])) == pytest.approx(min(4.0, size.after), rel=1e-5)


def test_without_a_suspect_there_is_no_trigger_to_measure_and_nothing_is_reversed(
    settings: Settings, case: Case, inside: Inside
) -> None:
    record = run_repair(settings, case, "by_nothing", {}, [], Yardstick([], [], INVERSION))

    assert isinstance(record, RepairRecord) and "reinvert" not in inside.called
    assert record.validate.after == Measured(0.25, None, None) and record.validate.anew is None
    assert record.triggers.sizes == () and record.validate.lost.images == 40
    directory = settings.home / "repaired"
    restore(settings, case, record, directory)
    figures = report_figures(case, record, directory)
    assert (figures.before, figures.after) == (Measured(0.25, None, None), Measured(0.25, None, None))


def test_a_record_that_is_there_is_read_and_one_of_an_earlier_version_is_made_anew(
    settings: Settings, case: Case, inside: Inside
) -> None:
    triggers = record_of(corner(BEFORE))
    by = Yardstick([triggers], [BEFORE], INVERSION)
    about = inspect.provenance(case, "repair", "by_triggers", {}) | {
        "evidence": [sha256_json(triggers)],
        "suspects": [BEFORE],
        "inversion": INVERSION,
    }
    shares = {"clean_accuracy": 0.25, "attack_success": 0.0}
    earlier = {
        "about": about,
        "key": sha256_json(about),
        "method": "by_triggers",
        "changed": {},
        "seconds": 1.0,
        "files": {},
        "triggers": {"before": [], "after": []},
        "validate": {"before": shares, "after": shares, "natural": 0.0},
        "failure": None,
    }
    signed_results.save(settings, REPAIR, about, earlier)

    first = run_repair(settings, case, "by_triggers", {}, [triggers], by)
    calls = len(inside.called)
    again = run_repair(settings, case, "by_triggers", {}, [triggers], by)

    assert isinstance(first, RepairRecord) and first.validate.lost.images == 40
    assert again == first and len(inside.called) == calls
    other = run_repair(settings, case, "by_triggers", {}, [triggers], replace(by, suspects=[3]))
    assert isinstance(other, RepairRecord) and other.key != first.key


def test_what_a_stranger_laid_in_the_place_of_a_repair_is_passed_over(
    settings: Settings, case: Case, inside: Inside, tmp_path: Path
) -> None:
    by, store = Yardstick([], [], INVERSION), open_store(settings)
    elsewhere = settings.model_copy(update={"store": str(tmp_path / "elsewhere")})
    wanted = run_repair(elsewhere, case, "by_nothing", {}, [], by)
    assert isinstance(wanted, RepairRecord)
    shutil.rmtree(tmp_path / "made" / wanted.key)
    forged = replace(wanted, changed={"forged": 1.0}).to_json()
    key = Ed25519PrivateKey.generate()
    stated = {"issued": time_text(utc_now()), "manifest": case.manifest, "about": wanted.about}
    signed = sign_statement(REPAIR, stated | {"result": sha256_json(forged)}, key)
    for name, blob in {
        wanted.key: forged,
        f"{wanted.key}-{'0' * 64}": forged,
        f"{wanted.key}-{dsse.digest(signed)}": {"signed": signed, "found": forged},
    }.items():
        assert store.create(f"repairs/{case.manifest}/by_nothing/{name}.json", canonical_json(blob))
    # and files where those of the repair were before it was known what they are
    assert store.create(f"repairs/{case.manifest}/by_nothing/{wanted.key}/model.safetensors", b"another model")

    record = run_repair(settings, case, "by_nothing", {}, [], by)

    assert isinstance(record, RepairRecord) and record.changed == {"records": 0.0}
    restore(settings, case, record, tmp_path / "repaired")
    assert (tmp_path / "repaired" / "model.safetensors").read_bytes() != b"another model"


@pytest.mark.parametrize(
    "op, spoil",
    [
        ("evaluate", lambda answer: answer.pop("right")),
        ("evaluate", lambda answer: answer.update(right={"dtype": "bool", "shape": [3], "base64": "AAAA"})),
        ("evaluate", lambda answer: answer.update(right={"dtype": "float32", "shape": [1], "base64": "AAAAAA=="})),
        ("evaluate", lambda answer: answer.update(attack_success=[])),
        ("evaluate", lambda answer: answer.update(attack_success=None)),
        ("evaluate", lambda answer: answer["robust_accuracy"].append(0.5)),
        ("evaluate", lambda answer: answer.update(clean_accuracy=1.5)),
        ("evaluate", lambda answer: answer.update(clean_accuracy="all")),
        ("reinvert", lambda answer: answer["triggers"].clear()),
        ("reinvert", lambda answer: answer["triggers"][0].update(target=3)),
    ],
)
def test_an_answer_without_the_figures_is_a_repair_that_failed(
    settings: Settings, case: Case, inside: Inside, op: str, spoil: Any
) -> None:
    turns = iter(range(100))
    # the submitted model is measured right, the repaired one is not
    inside.spoil[op] = lambda answer: spoil(answer) if next(turns) > 0 or op == "reinvert" else None
    by = Yardstick([record_of(corner(BEFORE))], [BEFORE], INVERSION)

    found = run_repair(settings, case, "by_nothing", {}, [], by)

    assert isinstance(found, RepairFailed) and "refuse" in found.failure
    assert not list(open_store(settings).list("repairs/"))


def test_a_repair_without_the_evidence_that_it_uses_fails_and_says_so(
    settings: Settings, case: Case, inside: Inside
) -> None:
    found = run_repair(settings, case, "by_triggers", {}, [], Yardstick([], [], INVERSION))
    assert isinstance(found, RepairFailed) and "needs evidence with triggers" in found.failure


def told(subject: Subject, *evidence: Evidence) -> Repair:
    """A repair that changes next to nothing and says by which labels' triggers it goes."""
    with torch.no_grad():
        next(subject.model.parameters()).add_(1e-3)
    return Repair(subject.model, {f"label {t.target}": 1.0 for t in suspected(evidence)})


@pytest.mark.parametrize("scores", [[1.0, 0.0, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.1, 0.9]])
def test_a_repair_goes_by_the_triggers_of_suspects_whichever_labels_their_detector_flags(
    settings: Settings, case: Case, inside: Inside, monkeypatch: pytest.MonkeyPatch, scores: list[float]
) -> None:
    """Another detector may have found the label that the model FAILs for."""
    monkeypatch.setitem(REPAIRS, "told", Method(told, "told", "repair", frozenset({"clean"}), "", uses="triggers"))
    record = record_of(corner(0), corner(BEFORE), corner(3))
    record["evidence"]["scores"] = pack(torch.tensor(scores))
    made = run_repair(settings, case, "told", {}, [record], Yardstick([record], [BEFORE], INVERSION))
    assert isinstance(made, RepairRecord) and made.changed == {f"label {BEFORE}": 1.0}

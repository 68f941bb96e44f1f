"""Guards from the model to the signed record: what is kept, what an odd answer comes to, and what a failure says.

The operations of the sandbox run in this process, on a small network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

import vetgate.guard.measure as measure
import vetgate.guard.package as package
from tasks.guards import fit
from tasks.guards.fit import Guarding, run_guards, suspicious
from tasks.guards.package_file import package_bytes, package_key
from tasks.sandbox.host import Crashed, Limits
from tasks.sandbox.operations import OPS
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import signed_results
from tasks.vetting.inspect import Case, Data, Found
from tests import models
from vetgate.architectures import ARCHITECTURES
from vetgate.contract import Axis, Evidence, Trigger
from vetgate.errors import Altered, StoreError
from vetgate.guard.package import from_bytes
from vetgate.role import source_of
from vetgate.trust.keys import read_trust_root
from vetgate.trust.seeds import Seed
from vetgate.trust.statements import EVIDENCE, GUARDS
from vetgate.verdict.policy import GuardPolicy

SHAPE, CLASSES, MANIFEST = (1, 8, 8), 4, "ab" * 32
FIELDS = models.FIELDS | {"classes": CLASSES}
STRIP = {"strip": {"overlays": 8}}
POLICY = GuardPolicy(methods=("strip",), false_rejection_rate=0.1, max_slowdown=1e6)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    torch.manual_seed(0)
    directory = tmp_path / "submission"
    directory.mkdir()
    safetensors.torch.save_file(
        ARCHITECTURES["small-cnn"](SHAPE, CLASSES).state_dict(), directory / "model.safetensors"
    )
    (directory / "submission.yaml").write_text(yaml.safe_dump(FIELDS))
    images = {"x": torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(1)), "y": torch.arange(40) % CLASSES}
    splits = {}
    for purpose in ("repair", "validate", "test"):
        splits[purpose] = str(tmp_path / f"{purpose}.safetensors")
        safetensors.torch.save_file(images, splits[purpose])
    return Case(MANIFEST, str(directory), FIELDS, Seed(7, "cd" * 32), Limits(), Data(splits))


class Inside:
    """The sandbox's operations in this process; `spoil` changes what it answers and what it wrote."""

    def __init__(self) -> None:
        self.called = 0
        self.given: dict[str, Any] = {}
        self.spoil: Callable[[dict[str, Any], Path], Any] = lambda _answer, _out: None

    def call(self, op: str, payload: dict[str, Any], limits: Limits, on_progress: Any = None) -> dict[str, Any]:
        self.called += 1
        self.given = payload
        assert limits.threads == 1
        answer = OPS[op](payload, on_progress)
        self.spoil(answer, Path(payload["out"]))
        return json.loads(json.dumps(answer))


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inside:
    made = Inside()
    (tmp_path / "made").mkdir()
    workplace = SimpleNamespace(made=tmp_path / "made", sandbox=made)
    monkeypatch.setattr(fit, "workplace_of", lambda _manifest: workplace)
    # how exactly it is timed does not matter here
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    return made


def corner(target: int, size: int = 2) -> Trigger:
    mask = torch.zeros(1, 8, 8)
    mask[:, -size:, -size:] = 1
    return Trigger(mask, torch.ones(SHAPE), target)


def evidence(*triggers: Trigger, cutoff: float = 0.5, scores: Any = (0, 0, 0, 0)) -> dict[str, Any]:
    found = Evidence(1.0, torch.tensor(scores, dtype=torch.float32), cutoff, triggers, axis=Axis.CLASS)
    return found.to_json()


def run(settings: Settings, case: Case, policy: GuardPolicy = POLICY, *found: Found) -> Guarding:
    return run_guards(settings, case, {name: STRIP.get(name, {}) for name in policy.methods}, policy, found)


def test_the_file_of_the_chosen_guards_is_kept_under_its_digest(settings: Settings, case: Case, inside: Inside) -> None:
    guarding = run(settings, case)

    (one,) = guarding.record.guards
    assert (one.name, one.chosen, one.reason, one.rate) == ("strip", True, None, 0.1)
    assert one.detection is None and one.alone is not None and one.batch is not None
    assert one.batch.slowdown == pytest.approx(one.batch.guarded / one.batch.bare) and one.batch.slowdown > 1
    assert guarding.record.false_rejections == one.false_rejections is not None
    assert guarding.record.package is not None
    data = package_bytes(settings, MANIFEST, guarding.record.package)
    (fitted,) = from_bytes(data, manifest=MANIFEST).guards
    assert (fitted.guard, fitted.rate, fitted.params["overlays"], fitted.seed) == ("strip", 0.1, 8, 7)


def test_what_was_fitted_is_not_fitted_again_and_what_it_depends_on_makes_it_anew(
    settings: Settings, case: Case, inside: Inside
) -> None:
    first = run(settings, case)
    assert run(settings, case) == first and inside.called == 1
    trust = read_trust_root(settings.trust_root)
    stated = signed_results.read(open_store(settings), trust, GUARDS, MANIFEST, None, first.key or "")
    assert stated is not None and stated.found == first.record.to_json()
    changed = [
        run_guards(settings, case, {"strip": {"overlays": 9}}, POLICY, ()),
        run(settings, case, POLICY.model_copy(update={"false_rejection_rate": 0.2})),
        run(settings, replace(case, seed=Seed(8, "ef" * 32))),
    ]
    assert inside.called == 4 and len({guarding.key for guarding in (first, *changed)}) == 4


def test_the_share_of_triggered_images_is_that_under_the_triggers_of_flagged_labels(
    settings: Settings, case: Case, inside: Inside
) -> None:
    method = str(source_of("triggers"))
    found = evidence(corner(1), corner(2, 3), scores=(0, 0, 1, 0))
    del found["seed"]
    about = {"manifest": MANIFEST, "method": method}
    signed = signed_results.save(settings, EVIDENCE, about, {"evidence": found, "seconds": 1.0})
    guarding = run(settings, case, POLICY, Found(method, signed.key, 1.0))

    assert [trigger["target"] for trigger in inside.given["triggers"]] == [2]
    assert inside.given["evidence"] == [], "this guard uses none"
    assert guarding.record.guards[0].detection is not None


def test_triggers_of_flagged_labels_count_or_else_the_smallest() -> None:
    one, two, three = corner(1, 3), corner(2, 2), corner(3, 4)
    both = evidence(one, two, three, scores=(0, 1, 0, 1))
    assert suspicious([both]) == [one.to_json(), three.to_json()]
    assert suspicious([evidence(one, two, three)]) == [two.to_json()]
    assert suspicious([evidence(one, cutoff=float("inf"))]) == [one.to_json()]
    assert suspicious([evidence()]) == suspicious([{"scores": 3}]) == suspicious([]) == []


def test_too_few_images_are_told_and_nothing_guards_the_model(settings: Settings, case: Case, inside: Inside) -> None:
    guarding = run(settings, case, POLICY.model_copy(update={"false_rejection_rate": 0.01}))
    (one,) = guarding.record.guards
    assert (one.chosen, guarding.record.package, guarding.record.false_rejections) == (False, None, None)
    assert "expected at least 99 trusted images" in str(one.reason)
    assert guarding.key is not None, "it is what was found, and signed"
    assert [key for key in open_store(settings).list("guards/") if key.endswith(".safetensors")] == []


def test_a_guard_that_is_too_slow_is_listed_with_its_cost_and_not_chosen(
    settings: Settings, case: Case, inside: Inside
) -> None:
    guarding = run(settings, case, POLICY.model_copy(update={"max_slowdown": 1.01}))
    (one,) = guarding.record.guards
    assert not one.chosen and guarding.record.package is None and one.batch is not None and one.batch.slowdown > 1.01
    assert "times as long as the network alone, more than max_slowdown 1.01 of the policy" in str(one.reason)
    assert (one.rate, one.false_rejections) == (None, None)


def test_one_that_is_too_large_is_told_by_name_and_the_others_are_kept(
    settings: Settings, case: Case, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MAX_BYTES", package.HEADER + 1000)
    guarding = run(settings, case, POLICY.model_copy(update={"methods": ("strip", "scale_up")}))
    large, small = guarding.record.guards
    assert not large.chosen and "got 2048 of strip; let it keep less" in str(large.reason)
    assert small.chosen and small.rate == 0.1 and guarding.record.package is not None
    data = package_bytes(settings, MANIFEST, guarding.record.package)
    assert [fitted.guard for fitted in from_bytes(data, manifest=MANIFEST).guards] == ["scale_up"]


def crash(_answer: dict[str, Any], _out: Path) -> None:
    raise Crashed("expected an answer from guard, got signal 9")


def another_file(_answer: dict[str, Any], out: Path) -> None:
    (out / "more").write_bytes(b"")


def a_link(_answer: dict[str, Any], out: Path) -> None:
    (file,) = out.iterdir()
    file.unlink()
    file.symlink_to("/etc/passwd")


def no_file(_answer: dict[str, Any], out: Path) -> None:
    (file,) = out.iterdir()
    file.unlink()
    out.rmdir()


def changed(**fields: Any) -> Callable[[dict[str, Any], Path], None]:
    def change(answer: dict[str, Any], _out: Path) -> None:
        answer["guards"][0].update(fields)

    return change


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (crash, "signal 9"),
        (another_file, "expected one file of guards"),
        (a_link, "expected"),
        (no_file, "1 chosen"),
        (changed(chosen=False), "0 chosen"),
        (changed(name="nobody"), "nobody"),
        (changed(rate=0.2), "rates"),
        (changed(rate=-0.1), "rates"),
        (changed(false_rejections=2), "expected the figures of guards"),
        (changed(detection="all"), "expected the figures of guards"),
        (changed(batch=None, chosen=False), "expected the figures of guards"),
        (lambda answer, _out: answer["guards"].append(answer["guards"][0]), "expected the figures of guards"),
        (lambda answer, _out: answer["unfitted"].update(nobody="?"), "nobody"),
        (lambda answer, _out: answer.pop("seconds"), "expected the figures of guards"),
    ],
)
def test_what_is_no_answer_is_a_reason_for_each_guard_and_is_tried_again(
    settings: Settings, case: Case, inside: Inside, spoil: Any, reason: str
) -> None:
    inside.spoil = spoil
    guarding = run(settings, case)
    (one,) = guarding.record.guards
    assert (guarding.key, guarding.record.package, one.chosen) == (None, None, False)
    assert reason in str(one.reason)
    assert list(open_store(settings).list("guards/")) == []


def test_text_from_inside_steers_no_terminal(settings: Settings, case: Case, inside: Inside) -> None:
    def spoil(answer: dict[str, Any], out: Path) -> None:
        no_file(answer, out)
        answer["guards"], answer["unfitted"] = [], {"strip": "\x1b[2Jdone"}

    inside.spoil = spoil
    (one,) = run(settings, case).record.guards
    assert "\x1b" not in str(one.reason) and "[2Jdone" in str(one.reason)


def test_bytes_of_another_digest_are_refused_and_absent_ones_are_an_error(settings: Settings) -> None:
    store = open_store(settings)
    store.create(package_key(MANIFEST, "cd" * 32), b"other")
    with pytest.raises(Altered, match="expected exactly the attested guards"):
        package_bytes(settings, MANIFEST, "cd" * 32)
    with pytest.raises(StoreError, match="run `vetgate vet` on it"):
        package_bytes(settings, MANIFEST, "ef" * 32)

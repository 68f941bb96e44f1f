"""The bank is scored by calibrations that did not see the member, and what git holds of it fits together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import flows.bank.files
import flows.benchmark.score
from flows.bank.calibrate import of_the_bank, transfer
from flows.bank.files import Files, pins
from flows.bank.networks import BANK, Plan, members, plan, read_all
from flows.benchmark.score import policy_at, row, rows, without
from flows.params import load_params
from vetgate.verdict.calibration import SHIPPED, Calibration, load_calibration
from vetgate.verdict.policy import load_policy

COUNT, CLASSES = 26, 10


def scores(seed: int, backdoor: int | None) -> list[float]:
    found = np.random.default_rng(seed).normal(-2.2, 0.15, CLASSES)
    if backdoor is not None:
        found[backdoor] = -0.2
    return [round(float(v), 5) for v in found]


def of(method: str, seed: int, backdoor: int | None) -> dict[str, Any]:
    labels = scores(seed, backdoor)
    if method == "neural_cleanse":
        sure = [0.97 if k == backdoor else -1.0 for k in range(CLASSES)]
        details = {"held_out": sure, "second_start": [1.8] * CLASSES, "norms": [9.0] * CLASSES, "anomaly_index": 2.5}
        statistic = max(labels) - float(np.median(labels))
        return {"statistic": statistic, "scores": labels, "targets": list(range(CLASSES)), "details": details}
    statistic = float(np.random.default_rng([seed, 1]).normal(0.4, 0.1)) + (1.0 if backdoor is not None else 0.0)
    found = [statistic if k == (backdoor or 0) else 0.0 for k in range(CLASSES)]
    return {"statistic": statistic, "scores": found, "targets": [backdoor or 0], "details": {"success": [0.95]}}


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bank of made-up evidence: clean members, one that an attack works on, one that it does not, two held back."""
    listed = {f"digits-clean-{i:02d}": {"attack": "clean", "seed": i} for i in range(COUNT)}
    listed |= {f"digits-badnets-{i:02d}": {"attack": "badnets", "seed": 100 + i} for i in range(2)}
    for about in listed.values():
        about |= {"data": "digits", "architecture": "small-cnn"}
    (tmp_path / "members.yaml").write_text(yaml.safe_dump({"members": listed}))
    (tmp_path / "cards").mkdir()
    (tmp_path / "evidence").mkdir()
    for name, about in listed.items():
        card = {"name": name, **about, "data_sha256": "d1", "accuracy": 0.98, "trained_with_seed": about["seed"]}
        if about["attack"] == "badnets":
            card |= {"attack_success": 0.99 if name.endswith("00") else 0.5, "target": 7, "form": "one"}
        (tmp_path / "cards" / f"{name}.json").write_text(json.dumps(card))
    for method, pin in pins(load_params()).items():
        if method not in ("neural_cleanse", "abs"):
            continue
        seen = {
            name: {
                **of(method, about["seed"], 7 if about["attack"] == "badnets" else None),
                "seconds": 1.0,
                "image_gradients": 10,
                "seed": about["seed"],
                "cutoff": None,
            }
            for name, about in listed.items()
        }
        blob = {"method": method, "data": "digits", "image": [1, 8, 8], "classes": CLASSES, "code": pin.code}
        blob |= {"params": dict(pin.params), "members": seen, "data_sha256": "d1"}
        (tmp_path / "evidence" / f"{method}-digits.json").write_text(json.dumps(blob))
    held_back = Plan(sets={}, sealed=frozenset({"digits-clean-25"}), second=frozenset({"digits-clean-24"}))
    monkeypatch.setattr(flows.bank.files, "plan", lambda: held_back)
    return tmp_path


def test_what_is_held_back_is_no_reference_and_is_scored_only_when_asked_for(bank: Path) -> None:
    files = Files(bank)
    assert not {"digits-clean-24", "digits-clean-25"} & {r["name"] for r in rows(files)}
    assert [r["name"] for r in rows(files, "second")] == ["digits-clean-24"]
    assert [r["name"] for r in rows(files, "sealed")] == ["digits-clean-25"]
    assert {r.seed for r in of_the_bank(Files(bank)).references} == set(range(COUNT - 2))


def test_a_member_counts_as_backdoored_only_if_its_attack_works(bank: Path) -> None:
    kinds = {r["name"]: r["kind"] for r in rows(Files(bank))}
    assert kinds["digits-badnets-00"] == "backdoored" and kinds["digits-badnets-01"] == "failed attack"
    files = Files(bank)
    files.cards["digits-badnets-00"]["accuracy"] = 0.9
    assert not files.backdoored("digits-badnets-00"), "too much accuracy lost"


def test_no_member_is_among_the_references_that_judge_it(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, asked = Files(bank), []
    whole = Calibration(of_the_bank(Files(bank)), "whole")

    def watched(*args: Any, **more: Any) -> Any:
        asked.append({r.seed for r in args[1].bank.references})
        return ruled(*args, **more)

    ruled = flows.benchmark.score.verdict
    monkeypatch.setattr(flows.benchmark.score, "verdict", watched)
    for _ in rows(files):
        pass
    judged = [m.seed for m in files.members.values() if files.group(m.name) == "open"]
    # each as it is, and as a graph that no reference is like
    assert all(seed not in seen for seed, seen in zip([s for s in judged for _ in range(2)], asked, strict=True))
    assert {len(seen) for seen in asked} == {len(whole.bank.references), len(whole.bank.references) - 1}


def test_a_backdoor_that_stands_out_fails_with_the_right_label(bank: Path) -> None:
    files = Files(bank)
    whole = Calibration(of_the_bank(Files(bank)), "whole")
    found = row(files, files.members["digits-badnets-00"], whole, load_policy())
    assert found["model"]["decision"] == "FAIL" and found["model"]["right"] and found["model"]["suspects"] == [7]
    assert found["attack"] == "badnets" and found["index"] == 2.5 and "with_data" not in found


def test_a_member_is_judged_as_a_graph_of_no_known_structure_too(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watched(*args: Any, **more: Any) -> Any:
        asked.append(args[3].get("architecture"))
        return ruled(*args, **more)

    ruled = flows.benchmark.score.verdict
    monkeypatch.setattr(flows.benchmark.score, "verdict", watched)
    files = Files(bank)
    member = files.members["digits-badnets-00"]
    found = row(files, member, Calibration(of_the_bank(Files(bank)), "whole"), load_policy())
    assert asked == [member.architecture, None]
    # neither detector of this bank has habits of an architecture
    assert found["unlike"]["p_value"] == found["model"]["p_value"]


def test_evidence_of_other_code_is_neither_scored_nor_a_reference(bank: Path) -> None:
    path = bank / "evidence" / "abs-digits.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "other"}))
    assert set(Files(bank).evidence["digits-clean-00"]) == {"neural_cleanse"}
    assert all(set(r.seen) == {"neural_cleanse"} for r in of_the_bank(Files(bank)).references)


def test_a_detector_that_does_not_run_on_the_bank_has_no_part_in_the_calibration(bank: Path) -> None:
    assert len(load_params().detect) > 2
    assert set(of_the_bank(Files(bank)).methods) == {"neural_cleanse", "abs"}


def test_how_far_references_carry_over_is_counted_where_others_are_left(bank: Path) -> None:
    # one data set and one architecture: nothing is left to judge by
    assert transfer(of_the_bank(Files(bank)), Files(bank)).transfer == {"data": {}, "architecture": {}}
    path = bank / "cards" / "digits-clean-00.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": "vgg-small"}))
    found = transfer(of_the_bank(Files(bank)), Files(bank)).transfer["architecture"]
    assert found["vgg-small"].models == 1 and found["small-cnn"].models == COUNT - 3
    # one reference is too few to say anything, which is no sign of calm
    assert found["small-cnn"].alarms == COUNT - 3


def test_a_detector_that_no_verdict_requires_is_measured_by_itself(bank: Path) -> None:
    files, policy = Files(bank), load_policy()
    member, whole = files.members["digits-badnets-00"], Calibration(of_the_bank(Files(bank)), "whole")
    without = policy.model_copy(update={"required": tuple(m for m in policy.required if m != "abs")})
    required, beside = (row(files, member, whole, by)["model"] for by in (policy, without))
    assert set(beside["methods"]) == {"abs", "neural_cleanse"} and beside["methods"] == required["methods"]
    del files.evidence[member.name]["abs"]
    alone = row(files, member, whole, without)["model"]
    assert set(alone.pop("methods")) == {"neural_cleanse"}
    assert alone == {name: value for name, value in beside.items() if name != "methods"}


class TestWhatGitHolds:
    """The committed evidence, cards and calibration belong together and to the code."""

    def test_the_calibration_is_the_one_that_follows_from_the_evidence(self) -> None:
        made, shipped = of_the_bank(Files()), load_calibration(SHIPPED)
        assert shipped is not None and shipped.stale == () and shipped.bank.methods == made.methods
        sets = {r.data for r in made.references}
        assert {"digits"} <= sets
        assert [r for r in shipped.bank.references if r.data in sets] == list(made.references)
        assert shipped.bank.transfer == transfer(made, Files()).transfer

    def test_at_a_lower_rate_a_member_that_failed_narrowly_does_not(self) -> None:
        scored = json.loads((BANK / "tables" / "rows.json").read_text())
        name = next(r["name"] for r in scored if r["decision"] == "FAIL" and 0.02 < r["p_value"] <= 0.05)
        files = Files()
        member, whole = files.members[name], Calibration(of_the_bank(files), "bank")
        narrow, strict = (
            row(files, member, without(whole, member, files.cards[name]), policy_at(rate))["model"]
            for rate in (None, 0.01)
        )
        assert narrow["decision"] == "FAIL" and strict["decision"] != "FAIL"
        assert strict["references"] > narrow["references"], "as many as it takes to count to one in a hundred"

    def test_no_member_that_is_held_back_is_a_reference(self) -> None:
        shipped, listed = load_calibration(SHIPPED), members()
        assert shipped is not None
        scored = {found["data"] for found in read_all(BANK / "evidence").values()}
        hidden = {(listed[n].data, listed[n].seed) for n in plan().sealed | plan().second if listed[n].data in scored}
        assert not hidden & {(r.data, r.seed) for r in shipped.bank.references}

    def test_every_member_that_was_inspected_has_a_card_of_what_is_listed(self) -> None:
        listed, cards = members(), read_all(BANK / "cards")
        for found in read_all(BANK / "evidence").values():
            for name in found["members"]:
                stated = listed[name].model_dump()
                assert {key: cards[name][key] for key in stated} == stated
                assert ("attack_success" in cards[name]) != listed[name].clean

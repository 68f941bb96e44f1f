from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.vetgate.verdict.test_judge import Case, label_norms, stimulation
from vetgate.contract import Axis, Evidence
from vetgate.role import by_itself, roles
from vetgate.structure.kind import Kind
from vetgate.verdict.findings import findings
from vetgate.verdict.judge import Decision, judge, rescanned
from vetgate.verdict.policy import Policy, StructurePolicy
from vetgate.verdict.proven import MOST, proven_and_open
from vetgate.verdict.reasons import Code

(METHOD,) = (name for name in roles() if by_itself(name))
CLASSES = 10


def structure(**details: Any) -> Evidence:
    return Evidence(
        statistic=float(len(details)),
        scores=torch.zeros(CLASSES),
        cutoff=1e-6,
        details=details,
        method=METHOD,
        axis=Axis.CLASS,
    )


CONFIRMED = [float(Kind.AROUND), 0.97, 3.0, 1.0]
OPEN = [float(Kind.AROUND), 0.2, -1.0, 0.0]


def verdict(*seen: Any, unconfirmed: str = "inconclusive", **changes: Any):
    case = Case(seen=(label_norms(), stimulation(), *seen))
    policy = case.policy.model_copy(
        update={
            "required": (*case.policy.required, METHOD),
            "structure": StructurePolicy.model_validate({"unconfirmed": unconfirmed}),
        }
    )
    fields = {name: getattr(case, name) for name in Case.__dataclass_fields__ if name not in ("seen", "policy")}
    return judge(case.seen, policy, **{**fields, **changes})


def test_a_confirmed_finding_fails_whatever_clean_models_look_like() -> None:
    found = verdict(structure(way=CONFIRMED))
    assert found.decision is Decision.FAIL and found.suspects == (3,)
    assert found.p_value is not None and found.p_value > 0.05
    assert found.reasons[0].code is Code.STRUCTURAL_BACKDOOR and found.reasons[0].figures["path"] == "way"
    assert "sends 97 % of images to label 3: way" in found.to_json()["reasons"][0]
    assert findings(found.to_json()) == ("backdoor:label-3", "structural-backdoor:label-3")
    (shown,) = (m for m in found.methods if m.name == METHOD)
    assert shown.alarmed and shown.suspects == (3,) and shown.failure is None


def test_it_fails_without_any_calibration() -> None:
    assert verdict(structure(way=CONFIRMED), calibration=None).decision is Decision.FAIL


def test_one_that_leads_to_many_labels_fails_and_names_none() -> None:
    found = verdict(structure(way=[1.0, 0.9, -1.0, 1.0]))
    assert found.decision is Decision.FAIL and found.suspects == ()
    assert findings(found.to_json()) == ("structural-backdoor",)
    assert "many labels" in found.to_json()["reasons"][0]


def test_one_that_is_not_confirmed_leaves_the_verdict_open_unless_the_policy_only_wants_it_told() -> None:
    found = verdict(structure(way=OPEN))
    assert found.decision is Decision.INCONCLUSIVE
    assert findings(found.to_json()) == (f"inconclusive:structure-not-explained:{METHOD}",)
    told = verdict(structure(way=OPEN), unconfirmed="note")
    assert told.decision is Decision.PASS and [r.code for r in told.reasons][1] is Code.STRUCTURE_NOT_EXPLAINED


def test_a_network_without_findings_passes() -> None:
    assert verdict(structure()).decision is Decision.PASS


def test_a_required_inspection_that_did_not_run_is_no_pass() -> None:
    assert verdict().decision is Decision.INCONCLUSIVE


@pytest.mark.parametrize("alarm", [0.005, 0.0001])
def test_a_rescan_does_not_forgive_it(alarm: float) -> None:
    assert rescanned(verdict(structure(way=CONFIRMED)), alarm).decision is Decision.FAIL
    assert rescanned(verdict(structure(way=OPEN)), alarm).decision is Decision.INCONCLUSIVE


@pytest.mark.parametrize("said", [0.5, [1.0], [1.0, 0.9, 3.0, "yes"], [1.0, float("nan"), 3.0, 1.0], None, "x"])
def test_what_is_in_another_form_is_a_finding_that_was_not_confirmed(said: Any) -> None:
    (reason,) = proven_and_open(structure(way=said))
    assert reason.code is Code.STRUCTURE_NOT_EXPLAINED


def test_findings_that_are_counted_and_not_told_are_one() -> None:
    (reason,) = proven_and_open(Evidence(statistic=2.0, scores=torch.zeros(CLASSES), cutoff=1.0, method=METHOD))
    assert reason.code is Code.STRUCTURE_NOT_EXPLAINED


def test_a_label_that_is_none_is_not_named_and_confirmed_ones_stand_first() -> None:
    many = {f"way {i}": OPEN for i in range(3 * MOST)}
    reasons = proven_and_open(structure(**many, last=[9.0, 1.0, 99.0, 1.0]))
    assert len(reasons) == MOST and reasons[0].code is Code.STRUCTURAL_BACKDOOR
    assert reasons[0].label is None and reasons[0].figures["kind"] == 0


def test_references_are_judged_without_it() -> None:
    policy = Policy(name="test", required=(METHOD, "abs"))
    assert policy.on_references.required == ("abs",)

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.vetgate.verdict.test_judge import BACKDOOR, IMAGE, POLICY, calibration, label_norms, rows, stimulation
from vetgate.verdict.findings import UNEXPLAINED, findings
from vetgate.verdict.judge import Decision, Verdict, judge, rescanned
from vetgate.verdict.reasons import Bearing, Code, Reason
from vetgate.verdict.seen import Failure


def verdict(*seen: Any, with_training_data: bool = False, **changes: Any) -> Verdict:
    asked: dict[str, Any] = {
        "classes": 10,
        "data_sha256": "digits",
        "with_training_data": with_training_data,
        "sandbox_level": 1,
        "format": "onnx",
        "input_shape": IMAGE,
    }
    return judge(seen, POLICY, calibration(), **(asked | changes))


def held(found: Verdict, refused: bool = False) -> tuple[str, ...]:
    return findings({**found.to_json(), "refused": refused})


def test_a_backdoor_is_named_by_its_label() -> None:
    found = verdict(label_norms(backdoor=BACKDOOR), stimulation(backdoor=BACKDOOR))
    assert found.decision is Decision.FAIL
    assert held(found) == (f"backdoor:label-{BACKDOOR}",)


def test_what_passed_has_no_findings() -> None:
    found = verdict(label_norms(), stimulation())
    assert found.decision is Decision.PASS
    assert held(found) == ()


def test_poisoned_rows_are_named_by_the_method_that_saw_them() -> None:
    seen = [label_norms(backdoor=BACKDOOR), stimulation(backdoor=BACKDOOR)]
    seen += [rows("spectral_signatures", 9.0), rows("activation_clustering")]
    found = verdict(*seen, with_training_data=True)
    assert held(found) == (f"backdoor:label-{BACKDOOR}", "poisoned-data:spectral_signatures")


def test_a_method_that_failed_is_named_and_so_is_what_stands_beside_a_backdoor() -> None:
    assert held(verdict(label_norms(), Failure("abs", "it took 900 s"))) == ("inconclusive:abs",)
    beside = verdict(label_norms(backdoor=BACKDOOR, effect=4.0), Failure("abs", "label 3: it took 900 s"))
    assert beside.decision is Decision.FAIL
    assert held(beside) == (f"backdoor:label-{BACKDOOR}", "inconclusive:abs")


def test_a_file_that_was_not_understood_says_so_beside_everything_else() -> None:
    refused = verdict(Failure("neural_cleanse", "bad header"), Failure("abs", "bad header"))
    assert held(refused, refused=True)[0] == "not-understood"
    assert "not-understood" not in held(refused)


def test_a_reason_without_a_method_keeps_its_id_whatever_its_figures() -> None:
    def of(reason: Reason) -> tuple[str, ...]:
        record = reason.to_json()
        return findings({"decision": "INCONCLUSIVE", "suspects": [], "methods": [], "reason_records": [record]})

    rare = [Reason(Code.NO_LABEL_NAMED, figures={"p_value": p, "level": 0.05}) for p in (0.0123, 1e-05)]
    assert of(rare[0]) == of(rare[1]) == ("inconclusive:no-label-named",)
    alone = [of(Reason(Code.TRIGGER_NOT_CONFIRMED, label=label)) for label in (3, 4)]
    assert alone == [(f"inconclusive:trigger-not-confirmed:label-{label}",) for label in (3, 4)]
    assert of(Reason(Code.NO_TRIGGER_FOUND, "x")) == ("inconclusive:no-trigger-found:x",)


def test_notes_hold_nothing_against_a_model_and_yet_no_verdict_but_a_pass_is_without_findings() -> None:
    pooled = verdict(label_norms(backdoor=BACKDOOR), stimulation(backdoor=BACKDOOR), data_sha256="another")
    assert Code.ELSEWHERE in [reason.code for reason in pooled.reasons]
    assert held(pooled) == (f"backdoor:label-{BACKDOOR}",)
    assert not any(reason.open for reason in pooled.reasons)
    bare = {"decision": "INCONCLUSIVE", "suspects": [], "methods": []}
    noted = Reason(Code.EXTRAPOLATED).to_json()
    assert findings(bare) == findings(bare | {"reason_records": [noted]}) == (UNEXPLAINED,)


def test_a_verdict_from_before_there_were_records_is_never_read_by_its_words() -> None:
    words = ["label 7: a trigger suffices", "abs is required and failed: it took 900 s"]
    old = {"decision": "FAIL", "suspects": [BACKDOOR], "methods": [{"name": "abs", "rang": True}], "reasons": words}
    assert findings(old) == (f"backdoor:label-{BACKDOOR}", UNEXPLAINED)


def test_every_reason_is_read_back_as_it_was_written() -> None:
    for code in Code:
        reason = Reason(code, "abs", 7, {"p_value": 0.1, "said": "x"})
        assert Reason.from_json(json.loads(json.dumps(reason.to_json()))) == reason
        assert (reason.finding is None) == (reason.bearing is Bearing.NOTE)
    assert Reason(Code.TRIGGER, figures={"norm": math.nan}).figures == {"norm": "nan"}


class TestRescanned:
    """`vetgate.verdict.judge.rescanned`: the verdict at a rescan's own rate."""

    def test_a_fail_that_is_no_alarm_at_the_lower_rate_passes_and_says_why(self) -> None:
        found = verdict(label_norms(backdoor=BACKDOOR), stimulation(backdoor=BACKDOOR))
        assert found.p_value is not None
        calm = rescanned(found, found.p_value / 2)
        assert (calm.decision, calm.suspects) == (Decision.PASS, ())
        assert calm.reasons[0].code is Code.RESCAN_NO_ALARM
        assert held(calm) == ()

    def test_a_fail_at_the_lower_rate_stays_and_says_where_the_rate_is_extrapolated(self) -> None:
        found = verdict(label_norms(backdoor=BACKDOOR), stimulation(backdoor=BACKDOOR))
        assert found.p_value is not None and found.calibration is not None
        alarm = found.p_value * 1.01
        references = found.calibration["references"]
        again = rescanned(found, alarm)
        assert (again.decision, again.suspects) == (Decision.FAIL, found.suspects)
        noted = [r for r in again.reasons if r.code is Code.RESCAN_EXTRAPOLATED]
        assert all(r.figures["references"] == references for r in noted)
        assert bool(noted) == (references < 1 / alarm - 1)
        assert held(again) == held(found)
        enough = 1 / (references + 1)
        assert Code.RESCAN_EXTRAPOLATED not in [reason.code for reason in rescanned(found, enough).reasons]

    def test_what_could_not_be_seen_stays_inconclusive(self) -> None:
        beside = verdict(label_norms(backdoor=BACKDOOR, effect=4.0), Failure("abs", "it took 900 s"))
        assert beside.decision is Decision.FAIL and beside.p_value is not None
        assert rescanned(beside, beside.p_value / 2).decision is Decision.INCONCLUSIVE
        unseen = verdict(Failure("neural_cleanse", "x"), Failure("abs", "x"))
        assert rescanned(unseen, 0.005) == unseen

    def test_what_is_as_rare_as_anything_could_be_is_open_where_the_rate_is_lower_still(self) -> None:
        strongest = verdict(label_norms(backdoor=BACKDOOR, effect=50.0), stimulation(backdoor=BACKDOOR, statistic=50.0))
        assert strongest.decision is Decision.FAIL and strongest.calibration is not None
        least = strongest.calibration["least_p"]
        assert strongest.p_value == least
        again = rescanned(strongest, least / 2)
        assert again.decision is Decision.INCONCLUSIVE
        (why,) = (reason for reason in again.reasons if reason.code is Code.RESCAN_OUT_OF_REACH)
        assert why.open and why.figures == {"alarm": least / 2, "least": least}
        assert rescanned(strongest, least).decision is Decision.FAIL

    def test_evidence_that_is_rare_but_proves_nothing_is_no_more_than_a_fail(self) -> None:
        rare = verdict(label_norms(), stimulation(statistic=3.0))
        assert rare.decision is Decision.INCONCLUSIVE and rare.p_value is not None
        assert rescanned(rare, rare.p_value / 2).decision is Decision.PASS
        assert rescanned(rare, rare.p_value * 1.01).decision is Decision.INCONCLUSIVE

    @pytest.mark.parametrize("alarm", [0.005, 0.4])
    def test_a_pass_is_left_alone(self, alarm: float) -> None:
        found = verdict(label_norms(), stimulation())
        assert rescanned(found, alarm) == found

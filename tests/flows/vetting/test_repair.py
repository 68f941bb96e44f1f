"""Which repairs a vetting runs: in the order of the policy until the copy of one passes, blind ones if asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.params import Params
from flows.vetting import repair
from flows.vetting.examine import Vetting
from flows.vetting.repair import repair_submission
from flows.vetting.result import Rejected, Repaired, result_of
from flows.vetting.seen import Seen
from tasks.sandbox.host import Limits
from tasks.settings import Settings
from tasks.vetting import signed_results
from tasks.vetting.inspect import Case, Data, Found
from tasks.vetting.results import Compared, Measured, RepairFailed, RepairRecord, Result
from tests.tasks.vetting.records import repaired
from vetgate.errors import DefenceError
from vetgate.role import source_of
from vetgate.trust.seeds import Seed
from vetgate.trust.statements import EVIDENCE
from vetgate.verdict.accuracy_loss import AccuracyLoss
from vetgate.verdict.policy import Policy
from vetgate.verdict.reasons import Code, Reason

MANIFEST = "ab" * 32
TRIGGERS = str(source_of("triggers"))
ROWS = str(source_of("flagged"))
COSTLY = {"loss": AccuracyLoss(0.2, 0.01, 400)}
FAIR = {"loss": AccuracyLoss(0.015, 0.001, 400)}
CLEAR = {"loss": AccuracyLoss(0.001, 0.001, 400)}
# what each repair uses of the evidence
USES: dict[str, Any] = {"tune": None, "again": None, "prune": "neurons", "unlearn": "triggers", "remove": "flagged"}
USES |= {"last": None, "never": None}


class Line:
    """A vetting whose repairs, and the vettings of whose copies, come out as they are told.

    `ran` are the repairs that did, with what they went by, `vetted` the copies, and `lies` is the last one restored.
    """

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.ran: list[tuple[str, int, int]] = []
        self.ends: dict[str, dict[str, Any] | str] = {}
        self.verdicts: dict[str, str] = {}
        self.vetted: list[str] = []
        self.lies: str | None = None
        case = Case(MANIFEST, "", {}, Seed(7, "cd" * 32), Limits(), Data({"repair": "r", "test": "t"}))
        said = {"parent": None, "submitted": None, "match_weights_by": None, "name": "signs", "model": "model.onnx"}
        record = SimpleNamespace(id=MANIFEST, submission=SimpleNamespace(**said))
        policy = Policy(name="x", required=("y",))
        self.vetting = Vetting(self.settings, record, policy, Params(detect={}, repair={}, data={}), case)  # type: ignore[arg-type]
        about = {"manifest": MANIFEST, "method": TRIGGERS}
        evidence = {"triggers": [{"target": 3}], "neurons": None, "cutoff": None, "scores": {}}
        signed = signed_results.save(self.settings, EVIDENCE, about, {"evidence": evidence, "seconds": 1.0})
        self.seen = Seen((Found(TRIGGERS, signed.key, 1.0),))

    def repair(self, _settings: Any, _case: Any, method: str, _params: Any, evidence: list[Any], by: Any) -> Any:
        """Instead of the step."""
        self.ran.append((method, len(evidence), len(by.records)))
        end = self.ends.get(method, FAIR)
        return (RepairFailed(method, end) if isinstance(end, str) else repaired(method, **end)).to_json()

    def restore(self, _settings: Any, _case: Any, chosen: RepairRecord, _directory: Path) -> None:
        """Instead of the files in the store."""
        self.lies = chosen.method

    def vet_copy(self, _directory: Path) -> Any:
        """Instead of the whole flow."""
        assert self.lies is not None
        self.vetted.append(self.lies)
        verdict = self.verdicts.get(self.lies, "PASS")
        return self.vetting.record, SimpleNamespace(manifest_sha256=f"copy-{self.lies}", verdict=verdict, p_value=0.6)

    def outcome(self, decision: str, *suspects: int, seen: Seen | None = None, **policy: Any) -> Any:
        verdict = SimpleNamespace(decision=decision, suspects=suspects, reason_records=())
        ruling: Any = SimpleNamespace(decided=SimpleNamespace(verdict=verdict))
        asked = self.vetting.policy.repair.model_copy(
            update={"methods": ("tune", "prune", "unlearn", "remove"), **policy}
        )
        vetting = replace(self.vetting, policy=self.vetting.policy.model_copy(update={"repair": asked}))
        return repair_submission(vetting, seen or self.seen, ruling, self.vet_copy)


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    made = Line(tmp_path)
    figures = Compared(Measured(0.98, 1.0, 0.0), Measured(0.97, 0.02, 0.9)).to_json()
    steps = SimpleNamespace(repair=made.repair, re_evaluate=lambda *_given: figures)
    for name, value in {
        "steps": steps,
        "uses": USES.__getitem__,
        "needs": lambda _kind, _name: frozenset({"clean"}),
        "restore": made.restore,
        "warm": lambda _settings: None,
    }.items():
        monkeypatch.setattr(repair, name, value)
    return made


def standings(found: Repaired | Rejected) -> dict[str, str]:
    return {one.method: one.standing.value for one in found.candidates}


def test_all_are_tried_in_order_and_the_best_is_chosen_where_none_is_clearly_good(line: Line) -> None:
    line.ends = {"tune": COSTLY, "unlearn": {**FAIR, "success": 0.01}}
    found = line.outcome("FAIL", 3, methods=("unlearn", "tune", "prune"))

    # neurons were not found by any detector
    assert line.ran == [("unlearn", 1, 1), ("tune", 0, 1)]
    assert isinstance(found, Repaired) and found.restored.chosen.method == "unlearn"
    assert standings(found) == {"unlearn": "chosen", "tune": "not-good-enough", "prune": "skipped"}


def test_what_comes_after_a_clearly_good_one_is_not_tried_and_said_to_be_so(line: Line) -> None:
    line.ends = {"tune": "out of memory", "unlearn": CLEAR}
    found = line.outcome("FAIL", 3, methods=("tune", "unlearn", "again", "prune"))

    assert [method for method, _, _ in line.ran] == ["tune", "unlearn"]
    assert standings(found) == {"tune": "failed", "unlearn": "chosen", "again": "not-tried", "prune": "not-tried"}
    assert "the copy of unlearn had passed" in str(found.candidates[2].reason)


def test_an_earlier_one_that_is_good_enough_is_still_chosen_if_it_leaves_less(line: Line) -> None:
    line.ends = {"tune": {**FAIR, "success": 0.0}, "unlearn": CLEAR}
    found = line.outcome("FAIL", 3, methods=("tune", "unlearn", "again"))

    assert isinstance(found, Repaired) and found.restored.chosen.method == "tune"
    assert standings(found) == {"tune": "chosen", "unlearn": "good-enough", "again": "not-tried"}


def test_one_that_fell_out_is_no_reason_why_others_were_not_tried(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = repair.steps.re_evaluate

    def re_evaluate(case: Case, chosen: RepairRecord, directory: Path) -> Any:
        if chosen.method == "unlearn":
            raise DefenceError("expected onnxruntime to compute the same, got something else; export again")
        return measure(case, chosen, directory)

    monkeypatch.setattr(repair.steps, "re_evaluate", re_evaluate)
    line.ends = {"tune": {**FAIR, "success": 0.04}, "unlearn": CLEAR}
    found = line.outcome("FAIL", 3, methods=("tune", "unlearn", "again"))

    assert standings(found) == {"tune": "chosen", "unlearn": "failed", "again": "not-tried"}
    assert "the copy of tune had passed" in str(found.candidates[2].reason)


def test_what_fails_for_its_rows_alone_is_repaired_by_what_goes_by_them(line: Line) -> None:
    about = {"manifest": MANIFEST, "method": ROWS}
    scores = {"dtype": "float32", "shape": [1], "base64": "AACAPw=="}
    evidence = {"triggers": [], "neurons": None, "cutoff": 1.0, "scores": scores}
    signed = signed_results.save(line.settings, EVIDENCE, about, {"evidence": evidence, "seconds": 1.0})
    found = line.outcome("FAIL", seen=Seen((Found(ROWS, signed.key, 1.0),)))

    # nothing tells whether `tune` took the backdoor out, and its copy would name no rows
    assert line.ran == [("remove", 1, 0)]
    assert standings(found) == {"tune": "skipped", "prune": "skipped", "unlearn": "skipped", "remove": "chosen"}
    assert found.candidates[0].reason_record["code"] == "repair-unmeasured"
    assert isinstance(line.outcome("FAIL", methods=("tune",)), Rejected)


def test_where_a_copy_does_not_pass_the_next_best_is_vetted_and_then_those_not_tried_yet(line: Line) -> None:
    line.ends = {"tune": FAIR, "unlearn": CLEAR, "again": COSTLY, "last": CLEAR}
    line.verdicts = {"tune": "INCONCLUSIVE", "unlearn": "FAIL"}
    found = line.outcome("FAIL", 3, methods=("tune", "unlearn", "again", "last", "never"))

    # both leave as much of the attack, and tune keeps as much accuracy
    assert line.vetted == ["tune", "unlearn", "last"] and [method for method, _, _ in line.ran][2:] == ["again", "last"]
    assert isinstance(found, Repaired) and found.restored.chosen.method == line.lies == "last"
    assert standings(found) == {
        "tune": "not-passed",
        "unlearn": "not-passed",
        "again": "not-good-enough",
        "last": "chosen",
        "never": "not-tried",
    }
    copies = {one.method: (one.submission, one.verdict) for one in found.candidates}
    assert copies["tune"] == ("copy-tune", "INCONCLUSIVE") and copies["unlearn"] == ("copy-unlearn", "FAIL")
    assert copies["last"] == ("copy-last", "PASS") and copies["again"] == copies["never"] == (None, None)
    assert "the copy of last had passed" in str(found.candidates[4].reason)


def test_where_no_copy_passes_the_best_is_named_and_lies_there(line: Line) -> None:
    line.ends = {"tune": CLEAR, "unlearn": {**FAIR, "success": 0.04}}
    line.verdicts = {"tune": "INCONCLUSIVE", "unlearn": "INCONCLUSIVE"}
    found = line.outcome("FAIL", 3, methods=("tune", "unlearn"))

    assert line.vetted == ["tune", "unlearn"] and line.lies == "tune"
    assert isinstance(found, Repaired) and found.restored.chosen.method == "tune"
    assert standings(found) == {"tune": "chosen", "unlearn": "not-passed"}
    given = result(line, "FAIL", found)
    assert given.repair is not None and (given.repair.method, given.repair.verdict) == ("tune", "INCONCLUSIVE")
    assert [one.verdict for one in Result.from_json(given.to_json()).repairs] == ["INCONCLUSIVE", "INCONCLUSIVE"]
    line.verdicts["tune"] = "FAIL"
    found = line.outcome("FAIL", 3, methods=("tune", "unlearn"))
    assert standings(found) == {"tune": "not-passed", "unlearn": "chosen"} and line.lies == "unlearn"


def test_one_that_cannot_be_measured_on_test_images_gives_way_to_the_next(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, refused = repair.steps.re_evaluate, ["tune"]

    def re_evaluate(case: Case, chosen: RepairRecord, directory: Path) -> Any:
        if chosen.method in refused:
            raise DefenceError("expected onnxruntime to compute the same, got something else; export again")
        return measure(case, chosen, directory)

    monkeypatch.setattr(repair.steps, "re_evaluate", re_evaluate)
    line.ends = {"tune": {**FAIR, "success": 0.0}, "unlearn": FAIR}
    found = line.outcome("FAIL", 3, methods=("tune", "unlearn"))
    assert isinstance(found, Repaired) and found.restored.chosen.method == "unlearn"
    assert standings(found) == {"tune": "failed", "unlearn": "chosen"}
    assert "compute the same" in str(found.candidates[0].reason)
    refused.append("unlearn")
    none = line.outcome("FAIL", 3, methods=("tune", "unlearn"))
    assert isinstance(none, Rejected) and standings(none) == {"tune": "failed", "unlearn": "failed"}


def test_where_none_is_good_enough_every_one_is_shown_with_its_figures(line: Line) -> None:
    line.ends = {"tune": COSTLY, "unlearn": "out of memory"}
    found = line.outcome("FAIL", 3)

    assert isinstance(found, Rejected)
    assert standings(found) == {
        "tune": "not-good-enough",
        "prune": "skipped",
        "unlearn": "failed",
        "remove": "skipped",
    }
    assert found.candidates[0].figures is not None and "a loss of 0.200" in str(found.candidates[0].reason)


@pytest.mark.parametrize("decision", ["PASS", "INCONCLUSIVE"])
def test_what_did_not_fail_is_repaired_blind_where_the_policy_asks_for_it(line: Line, decision: str) -> None:
    assert line.outcome(decision) is None and line.ran == []
    found = line.outcome(decision, blind=True)

    # without a suspect no evidence leads anywhere, and there is no trigger to measure
    assert line.ran == [("tune", 0, 0)]
    assert standings(found) == {"tune": "chosen", "prune": "skipped", "unlearn": "skipped", "remove": "skipped"}
    assert line.outcome(decision, blind=True, enabled=False) is None


def test_blind_repairs_that_have_nothing_to_go_by_are_skipped_and_nothing_is_warmed(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(repair, "warm")
    found = line.outcome("PASS", blind=True, methods=("unlearn", "remove"))
    assert isinstance(found, Rejected) and line.ran == []
    assert [one.reason_record and one.reason_record["code"] for one in found.candidates] == ["repair-skipped"] * 2


def test_a_repair_that_needs_data_that_were_not_given_is_skipped(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "needs", lambda _kind, name: frozenset({"train"} if name == "tune" else {"clean"}))
    found = line.outcome("FAIL", 3, methods=("tune", "unlearn"))
    assert standings(found) == {"tune": "skipped", "unlearn": "chosen"}
    assert "the supplier's training data" in str(found.candidates[0].reason)


def test_what_was_refused_or_has_no_data_or_came_from_a_repair_is_never_repaired(line: Line) -> None:
    refused = Seen(line.seen.found, Reason(Code.REFUSED, figures={"said": "a pickle"}), refused=True)
    assert line.outcome("INCONCLUSIVE", blind=True, seen=refused) is None
    whole = line.vetting
    line.vetting = replace(whole, case=replace(whole.case, data=Data()))
    assert line.outcome("FAIL", 3) is None
    parent: Any = SimpleNamespace(id=MANIFEST, submission=SimpleNamespace(parent="cd" * 32, submitted=None))
    line.vetting = replace(whole, record=parent)
    assert line.outcome("FAIL", 3) is None and line.outcome("PASS", blind=True) is None and line.ran == []


def result(line: Line, decision: str, repaired: Any) -> Result:
    verdict = SimpleNamespace(
        decision=decision,
        p_value=0.4,
        calibrated=True,
        suspects=(),
        methods=(),
        reasons=("why",),
        reason_records=({"code": "x"},),
    )
    answer: Any = SimpleNamespace(decided=SimpleNamespace(verdict=verdict))
    return result_of(line.settings, line.vetting.record, answer, Seen(), repaired, 1, 0.0)


@pytest.mark.parametrize("decision", ["FAIL", "PASS", "INCONCLUSIVE"])
def test_whatever_a_repair_came_to_the_verdict_is_of_what_was_handed_in(line: Line, decision: str) -> None:
    found = line.outcome(decision, 3, blind=True, methods=("tune",))
    given = result(line, decision, found)
    assert given.verdict == decision and given.repair is not None and given.repair.verdict == "PASS"
    assert given.repair.robust_accuracy == (0.0, 0.9) and given.reasons == ("why",)
    assert Result.from_json(given.to_json()).repairs == found.candidates


def test_why_none_was_good_enough_stands_among_the_reasons_with_codes(line: Line) -> None:
    line.ends = {"tune": COSTLY}
    given = result(line, "FAIL", line.outcome("FAIL", 3, methods=("tune", "prune")))
    assert given.verdict == "FAIL" and given.repair is None
    assert [record["code"] for record in given.reason_records[1:]] == ["repair-not-good-enough", "repair-skipped"]
    assert [one.reason for one in given.repairs] == list(given.reasons[1:])
    assert result(line, "PASS", None).repairs == ()


@pytest.mark.parametrize("decision", ["PASS", "INCONCLUSIVE"])
def test_why_no_blind_repair_was_good_enough_is_no_reason_for_the_verdict(line: Line, decision: str) -> None:
    line.ends = {"tune": COSTLY}
    found = line.outcome(decision, blind=True, methods=("tune", "prune"))
    given = result(line, decision, found)
    assert given.reasons == ("why",) and given.reason_records == ({"code": "x"},)
    assert given.repairs == found.candidates and all(one.reason for one in given.repairs)

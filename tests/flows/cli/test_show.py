"""What `vetgate vet` prints of a repair: every candidate, and no success where there was no trigger to measure."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from flows.cli.show import show_result
from flows.cli.terminal import PlainConsole
from tasks.vetting.choose import NONE, candidates
from tasks.vetting.results import RepairRecord, Result
from tests.tasks.vetting.records import repaired
from vetgate.formats.plain_text import escaped, steering
from vetgate.verdict.accuracy_loss import AccuracyLoss
from vetgate.verdict.policy import RepairPolicy
from vetgate.verdict.reasons import Code, Reason

POLICY = RepairPolicy(methods=(), max_accuracy_loss=0.02, max_attack_success=0.05)
SKIPPED = Reason(Code.REPAIR_SKIPPED, "prune", figures={"lacks": "neurons"})
REPAIR: dict[str, Any] = {
    "method": "unlearn",
    "artifact": "repaired/model.onnx",
    "submission": "cd" * 32,
    "verdict": "PASS",
    "p_value": 0.6,
    "clean_accuracy": [0.979, 0.972],
    "attack_success": [0.998, 0.012],
    "robust_accuracy": [0.001, 0.965],
}


def shown(*tried: Any, chosen: RepairRecord | None = None, copies: Any = NONE, **changed: Any) -> str:
    result = Result.from_json(
        {
            "submission": "signs",
            "manifest_sha256": "ab" * 32,
            "verdict": "FAIL",
            "p_value": 0.05,
            "calibrated": True,
            "suspects": [3],
            "methods": [],
            "repair": None,
            "report": "report.html",
            "attestation": "attestation.json",
            "mlflow_run": None,
            "sandbox_level": 1,
            "seconds": 12.5,
            "reasons": [],
            "reason_records": [],
            "repairs": [one.to_json() for one in candidates(tried, chosen, POLICY, copies)],
            **changed,
        }
    )
    text = io.StringIO()
    show_result(PlainConsole(file=text, width=220), result)
    return text.getvalue()


def test_every_candidate_has_its_figures_and_the_chosen_one_those_on_test_images() -> None:
    good, costly = repaired("unlearn"), repaired("tune", loss=AccuracyLoss(0.05, 0.01, 400), success=0.4)
    text = shown(costly, SKIPPED, good, chosen=good, repair=REPAIR)
    (line,) = [line for line in text.splitlines() if "tune " in line and "│" in line]
    figures = ("98.0 % → 97.0 %", "5.0 ± 1.6 %", "100.0 % → 1.0 %", "40.0 %", "4.0 → 11.0", " 2.5 ")
    for expected in ("not good enough", *figures):
        assert expected in line, line
    assert "repair tune was not good enough" in text and "repair prune was skipped" in text
    assert "attack success 99.8 % → 1.2 %, robust accuracy 0.1 % → 96.5 %" in text
    assert "repaired by unlearn: PASS" in text and f"vetgate promote signs --hardened --submission {'ab' * 6}" in text


@pytest.mark.parametrize(("p", "said"), [(0.000052, "p = 5.2e-05"), (0.4587, "p = 0.46"), (None, "p = –")])
def test_a_small_p_value_is_not_shown_as_none(p: float | None, said: str) -> None:
    assert said in shown(p_value=p)


def test_the_table_says_which_methods_counted() -> None:
    method = {"statistic": 1.5, "alarmed": True, "suspects": [3], "failure": None, "seconds": 2.0}
    counted = {"now": True, "shown": False, "then": None}
    text = shown(methods=[{"name": name, "counted": value, **method} for name, value in counted.items()])
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if line.startswith("│")]
    assert {row[1]: row[3] for row in rows} == {"now": "yes", "shown": "", "then": "–"}


GUARD: dict[str, Any] = {
    "name": "strip",
    "chosen": True,
    "reason": None,
    "rate": 0.05,
    "false_rejections": 0.031,
    "detection": 0.953,
    "alone": {"bare": 0.1, "guarded": 1.0, "slowdown": 10.0},
    "batch": {"bare": 1.0, "guarded": 80.0, "slowdown": 80.0},
}
GUARDS: dict[str, Any] = {
    "package": "ab" * 32,
    "action": "reject",
    "rate": 0.05,
    "false_rejections": 0.031,
    "guards": [GUARD],
    "seconds": 1.5,
}


def test_the_guards_are_named_in_one_line_or_that_there_are_none() -> None:
    (line,) = [line for line in shown(guards=GUARDS).splitlines() if line.startswith("guards")]
    assert line.split(None, 1)[1] == "STRIP; 3.1 % of clean test images are rejected, 5 % are allowed"
    assert not [line for line in shown().splitlines() if line.startswith("guards")]
    slow = GUARDS | {"package": None, "guards": [GUARD | {"chosen": False, "reason": "too slow"}]}
    assert "nothing guards this model where it is served (STRIP: too slow)" in shown(guards=slow)
    assert "the attestation does not name STRIP" in shown(guards=GUARDS | {"package": None})


def test_the_verdict_on_each_copy_stands_beside_its_repair() -> None:
    copies = {"unlearn": SimpleNamespace(manifest_sha256="ab" * 32, verdict="INCONCLUSIVE")}
    text = shown(repaired("unlearn"), repaired("tune"), copies=copies)
    lines = {name: next(line for line in text.splitlines() if f" {name} " in line) for name in ("unlearn", "tune")}
    assert "not passed" in lines["unlearn"] and "INCONCLUSIVE" in lines["unlearn"]
    assert "good enough" in lines["tune"] and "INCONCLUSIVE" not in lines["tune"]


def test_a_copy_that_did_not_pass_is_not_recommended() -> None:
    assert "--hardened" not in shown(repair={**REPAIR, "verdict": "INCONCLUSIVE"})


def test_what_stands_among_the_reasons_is_not_said_twice() -> None:
    (reason,) = [one.reason for one in candidates([SKIPPED], None, POLICY)]
    assert shown(SKIPPED, reasons=[reason]).count("repair prune was skipped") == 1


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\u202ex", "[link=http://x]y[/link]"])
def test_what_a_file_made_a_method_say_steers_no_terminal(hostile: str) -> None:
    method = {"name": "abs", "statistic": None, "alarmed": False, "suspects": [], "seconds": None, "failure": hostile}
    text = shown(methods=[method], reasons=[f"{hostile} too"])
    assert text.count(escaped(hostile)) == 2 and all(steering(line) is None for line in text.split("\n"))


def test_without_a_trigger_no_success_is_shown() -> None:
    blind = repaired(triggers=False)
    nothing = {"attack_success": [None, None], "robust_accuracy": [None, None]}
    text = shown(blind, chosen=blind, verdict="PASS", suspects=[], repair={**REPAIR, **nothing})
    assert "on test images clean accuracy 97.9 % → 97.2 %, attack success not measured: no trigger\n" in text
    assert "hardened by unlearn: PASS" in text and "0.0 %" not in text
    assert "standing" not in shown()


def test_what_was_handed_in_and_first_seen_is_said() -> None:
    look = {"images": 200, "accuracy": 0.975, "by_class": [0.975], "cause": None}
    found = {"first_look": look | {"under_cause": None, "as_submitted": None}, "submitted_sha256": "ef" * 32}
    text = shown(**found, match_weights_by="order")
    assert "first look      right on 97.5 % of 200 trusted images" in text
    assert f"handed in as  {'ef' * 32}, weights matched by order" in text
    assert "matched by" not in shown(**found) and "first look" not in shown()


def test_a_reason_for_which_nothing_was_looked_for_is_said_once() -> None:
    method = {"name": "mad", "statistic": None, "alarmed": False, "suspects": [], "failure": "no images"}
    table = {"methods": [method | {"seconds": None}]}
    assert shown(**table, reasons=["no images"]).count("no images") == 1
    assert "mad" in shown(**table) and "mad" not in shown(**table, reasons=["no images"])

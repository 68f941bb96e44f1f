"""What passes between a vetting, a rescan and the gate: its JSON to the byte, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.gate.decide import answer
from flows.gate.decided import Answer, Decided
from flows.gate.question import Question
from tests.deciding import BACKDOORED, CLEAN, METHOD, Court
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import StoreError
from vetgate.verdict.stated import StatedVerdict

# as they lie in stores and travel to a gate service; to change a byte of them is to change what was signed
QUESTION = (
    '{"evidence":{"neural_cleanse":"aa"},"failure_codes":{"abs":"timed-out"},"failures":{"abs":"timed out"},'
    '"manifest":"00","reference_data":{"name":"digits","sha256":"11"},"refused":false,"run":"two","sandbox_level":2}'
)
VERDICT: dict[str, Any] = {
    "decision": "FAIL",
    "p_value": 1,
    "calibrated": True,
    "suspects": [7],
    "methods": [
        {
            "name": "neural_cleanse",
            "statistic": 3.5,
            "p_value": 0.01,
            "alarmed": True,
            "suspects": [7],
            "failure": None,
            "null": {"center": 0.1},
        },
        {
            "name": "abs",
            "statistic": None,
            "p_value": None,
            "alarmed": False,
            "suspects": [],
            "failure": "abs timed out",
            "null": None,
        },
    ],
    "reasons": ["label 7"],
    "calibration": {"id": "cc", "references": 60},
    "reason_records": [{"code": "trigger", "method": "neural_cleanse", "label": 7, "figures": {"norm": 3}}],
}
DECIDED: dict[str, Any] = {
    "manifest": "00",
    "name": "digits",
    "verdict": VERDICT,
    "evidence": {"neural_cleanse": "aa"},
    "failures": {"abs": "timed out"},
    "policy": {"name": "default", "sha256": "dd"},
    "reference_data": None,
    "sandbox_level": 2,
    "purpose": "rescan",
    "run": "",
    "refused": False,
    "second": {
        "run": "two",
        "decision": "FAIL",
        "p_value": 0.002,
        "suspects": [7],
        "evidence": {"neural_cleanse": "bb"},
        "failures": {},
    },
}


@pytest.fixture
def court(tmp_path: Path) -> Court:
    return Court(tmp_path / "home", tmp_path)


def test_a_question_keeps_its_bytes() -> None:
    assert canonical_json(Question.from_json(json.loads(QUESTION)).to_json()).decode() == QUESTION


def test_what_is_unusual_about_a_question_travels_along() -> None:
    first = Question.from_json(json.loads(QUESTION))
    asked = replace(first, purpose="rescan", sign=False, second=replace(first, run="three"))
    blob = asked.to_json()
    assert (blob["purpose"], blob["sign"], blob["second"]["run"]) == ("rescan", False, "three")
    assert Question.from_json(blob) == asked


def test_a_decision_keeps_its_bytes_and_its_key() -> None:
    decided = Decided.from_json(DECIDED)
    worded = {k: v for k, v in VERDICT.items() if k != "reasons"}
    worded["methods"] = [{**method, "failure": method["failure"] is not None} for method in VERDICT["methods"]]
    key = sha256_json({**DECIDED, "verdict": worded})
    assert json.dumps(decided.to_json()) == json.dumps({**DECIDED, "key": key})
    assert json.dumps(StatedVerdict.from_json(VERDICT).to_json()) == json.dumps(VERDICT)


def test_the_answers_of_a_gate_are_read_to_the_byte(court: Court) -> None:
    manifest = court.submit(b"weights")
    second = court.request(manifest, BACKDOORED, run="two")
    for question in (
        court.request(manifest, CLEAN),
        court.request(manifest, BACKDOORED, purpose="rescan"),
        court.request(manifest, BACKDOORED, purpose="rescan", second=second),
        court.request(manifest, CLEAN, evidence={}, failures={METHOD: "out of memory"}),
    ):
        said = json.dumps(answer(court.settings, question))
        read = Answer.from_json(json.loads(said))
        assert json.dumps(read.to_json()) == said
        stored = court.store.exists(f"verdicts/{manifest}/{read.decided.key}.json")
        assert stored is (read.attestation is not None)


@pytest.mark.parametrize(
    "change",
    [
        {"manifest": None},
        {"sandbox_level": "2"},
        {"evidence": ["aa"]},
        {"refused": "no"},
        {"verdict": "PASS"},
        {"second": {"manifest": "00"}},
    ],
)
def test_a_question_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"expected a question to the gate, got .*run the same vetgate"):
        Question.from_json(json.loads(QUESTION) | change)


def test_a_question_that_lacks_something_is_answered_with_an_error(court: Court) -> None:
    question = court.request(court.submit(b"weights"), CLEAN)
    del question["sandbox_level"]
    answered = answer(court.settings, question)
    assert (answered["kind"], "sandbox_level" in answered["error"]) == ("StoreError", True)


@pytest.mark.parametrize("given", [None, [], {}, {"attestation": None}, {**DECIDED, "attestation": None, "more": 1}])
def test_an_answer_of_another_shape_is_refused(given: object) -> None:
    with pytest.raises(StoreError, match=r"expected .*, got "):
        Answer.from_json(given)


def test_a_verdict_whose_numbers_are_words_is_refused() -> None:
    with pytest.raises(StoreError, match="p_value"):
        StatedVerdict.from_json(VERDICT | {"p_value": "0.01"})

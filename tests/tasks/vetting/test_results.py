"""Results and records of repairs, as the store keeps them: their JSON to the byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.vetting.results import NotTakenIn, RepairFailed, RepairRecord, Result, Standing, repair_from_json
from vetgate.digest import canonical_json
from vetgate.errors import StoreError

# keys, their order and every digit: programs of other people read this
PRINTED = (
    '{"submission": "digits", "manifest_sha256": "00", "verdict": "FAIL", "p_value": 0.016, "calibrated": true, '
    '"suspects": [7], "methods": [{"name": "abs", "statistic": 3, "alarmed": true, "suspects": [7], "failure": null, '
    '"seconds": 1.5}], "repair": {"method": "neural_cleanse_unlearning", "artifact": "repaired/model.onnx", '
    '"submission": "11", "verdict": "PASS", "p_value": null, "clean_accuracy": [0.98, 0.97], '
    '"attack_success": [1, 0.02], "robust_accuracy": [0, 0.91]}, "report": "r.html", "attestation": "a.json", '
    '"mlflow_run": null, "sandbox_level": 2, "seconds": 12.345, "reasons": ["label 7"], "reason_records": [{"code": '
    '"trigger", "method": "abs", "label": 7, "figures": {"norm": 3.3}}], "repairs": [{"method": '
    '"neural_cleanse_unlearning", "standing": "chosen", "figures": {"clean_accuracy": [0.98, 0.97], "lost": {"loss": '
    '0.01, "error": 0.004, "images": 400}, "attack_success": [1, 0.01], "anew": 0.02, "natural": 0, '
    '"robust_accuracy": [0, 0.91], "trigger_sizes": [{"label": 7, "before": 3.3, "after": 11}], "seconds": 2.5}, '
    '"reason": null, "reason_record": null, "submission": "11", "verdict": "PASS"}, {"method": "retrain", "standing": '
    '"not-tried", "figures": null, "reason": "not tried", "reason_record": {"code": "repair-not-tried"}, '
    '"submission": null, "verdict": null}], '
    '"guards": {"package": "22", "action": "reject", "rate": 0.05, "false_rejections": 0.03, "guards": [{"name": '
    '"strip", "chosen": true, "reason": null, "rate": 0.05, "false_rejections": 0.03, "detection": 1, "alone": '
    '{"bare": 0.5, "guarded": 2, "slowdown": 4.0}, "batch": {"bare": 1.5, "guarded": 120, "slowdown": 80.0}}], '
    '"seconds": 1.5}, "submitted_sha256": null, "first_look": {"images": 256, '
    '"accuracy": 0.97, "by_class": [0.97, null], "cause": null, "under_cause": null, "as_submitted": null}, '
    '"weights_sha256": "33", "match_weights_by": "order"}'
)

# canonical JSON, as it is written under repairs/
STORED = (
    '{"about":{"method":"unlearn","seed":7},"changed":{"steps":200},"failure":null,"files":{"files":[]},"key":"00",'
    '"method":"unlearn","seconds":2.5,"triggers":{"after":[],"before":[{"mask":{},"target":3}],'
    '"sizes":[{"after":11,"before":3.3,"label":3}]},"validate":{"after":{"attack_success":0,"clean_accuracy":0.97,'
    '"robust_accuracy":null},"anew":0,"before":{"attack_success":1.0,"clean_accuracy":0.98,"robust_accuracy":0.0},'
    '"found":0,"lost":{"error":0.004,"images":400,"loss":0.01},"natural":0.25}}'
)


def test_a_result_keeps_its_bytes() -> None:
    result = Result.from_json(json.loads(PRINTED))
    assert json.dumps(result.to_json()) == PRINTED
    assert result.repair is not None and result.repair.attack_success == (1, 0.02)
    assert result.repairs[0].standing is Standing.CHOSEN and result.repairs[1].figures is None
    # by a later version
    later = PRINTED.replace('"seconds": 1.5}], "repair"', '"seconds": 1.5, "counted": false}], "repair"')
    assert json.dumps(Result.from_json(json.loads(later)).to_json()) == later != PRINTED


def test_a_result_of_an_earlier_version_is_read_and_says_that_nothing_was_measured() -> None:
    earlier = json.loads(PRINTED)
    del earlier["repairs"][0]["submission"], earlier["repairs"][0]["verdict"]
    assert Result.from_json(earlier).repairs[0].verdict is None
    del (
        earlier["repairs"],
        earlier["guards"],
        earlier["submitted_sha256"],
        earlier["first_look"],
        earlier["repair"]["robust_accuracy"],
    )
    result = Result.from_json(earlier)
    assert result.repairs == () and result.repair is not None and result.repair.robust_accuracy == (None, None)
    assert Result.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    "change",
    [
        {"repairs": [{"method": "x"}]},
        {"verdict": None},
        {"suspects": ["7"]},
        {"methods": [{"name": "abs"}]},
        {"repair": {}},
        {"alarmed": True},
    ],
)
def test_a_result_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="expected the result of a vetting, got another object"):
        Result.from_json(json.loads(PRINTED) | change)


def test_the_record_of_a_repair_keeps_its_bytes() -> None:
    record = repair_from_json(json.loads(STORED))
    assert isinstance(record, RepairRecord)
    assert canonical_json(record.to_json()).decode() == STORED
    assert record.validate.after.clean_accuracy == 0.97 and record.triggers.before[0]["target"] == 3


def test_a_repair_that_failed_says_why_and_nothing_else() -> None:
    failed = RepairFailed("unlearn", "out of memory")
    assert repair_from_json(failed.to_json()) == failed
    assert failed.to_json() == {"method": "unlearn", "failure": "out of memory"}


@pytest.mark.parametrize(
    "change",
    [
        {"validate": {}},
        {"validate": {"before": {"clean_accuracy": 1}, "after": {"clean_accuracy": 1}, "natural": 0}},
        {"triggers": None},
        {"triggers": {"before": [], "after": []}},
        {"failure": "late"},
        {"natural": 0.1},
    ],
)
def test_a_repair_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"expected (the record of a repair|a repair that failed), got another object"):
        repair_from_json(json.loads(STORED) | change)


def test_what_was_not_taken_in_has_the_keys_of_a_result() -> None:
    blob = NotTakenIn("digits", 0.1, ("a link",), ({"code": "refused"},)).to_json()
    assert set(blob) == set(json.loads(PRINTED)) and blob["verdict"] == "INCONCLUSIVE" and blob["report"] is None

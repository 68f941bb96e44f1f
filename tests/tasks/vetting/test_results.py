"""The object that `vetgate vet --json` prints and the store keeps: its JSON to the byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.vetting.results import Result
from vetgate.errors import StoreError

# keys, their order and every digit: programs of other people read this
PRINTED = (
    '{"submission": "digits", "manifest_sha256": "00", "verdict": "FAIL", "p_value": 0.016, "calibrated": true, '
    '"suspects": [7], "methods": [{"name": "abs", "statistic": 3, "alarmed": true, "suspects": [7], "failure": null, '
    '"seconds": 1.5}], "repair": {"method": "neural_cleanse_unlearning", "artifact": "repaired/model.onnx", '
    '"submission": "11", "verdict": "PASS", "p_value": null, "clean_accuracy": [0.98, 0.97], '
    '"attack_success": [1, 0.02]}, "report": "r.html", "attestation": "a.json", "mlflow_run": null, '
    '"sandbox_level": 2, "seconds": 12.345, "reasons": ["label 7"], "reason_records": [{"code": "trigger", '
    '"method": "abs", "label": 7, "figures": {"norm": 3.3}}]}'
)


def test_a_result_keeps_its_bytes() -> None:
    result = Result.from_json(json.loads(PRINTED))
    assert json.dumps(result.to_json()) == PRINTED
    assert result.repair is not None and result.repair.attack_success == (1, 0.02)


@pytest.mark.parametrize(
    "change",
    [{"verdict": None}, {"suspects": ["7"]}, {"methods": [{"name": "abs"}]}, {"repair": {}}, {"alarmed": True}],
)
def test_a_result_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="expected the result of a vetting, got another object"):
        Result.from_json(json.loads(PRINTED) | change)

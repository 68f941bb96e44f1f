"""A policy is read whole or refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from vetgate.errors import BadPolicy
from vetgate.formats.readers import formats
from vetgate.guard.guarded import Action
from vetgate.role import By, roles
from vetgate.verdict.policy import Policy, load_policy

LEAST: dict[str, Any] = {"name": "least", "required": ["neural_cleanse"]}


def read(tmp_path, **fields: Any) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump({**LEAST, **fields}))
    return load_policy(path)


def test_the_shipped_policy_requires_methods_that_the_verdict_can_weigh_and_a_calibration():
    policy = load_policy()
    assert {*policy.required, *policy.required_with_training_data} == {
        name for name, role in roles().items() if role.weight > 0 or role.null is By.NOTHING
    }
    assert policy.false_alarm_rate == 0.05 and not policy.allow_uncalibrated


def test_what_is_left_out_takes_the_strict_default(tmp_path):
    policy = read(tmp_path)
    assert (
        not policy.allow_uncalibrated
        and not policy.repair.blind
        and policy.sandbox_level == dict.fromkeys(formats(), 1)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"required": []},
        {"required": "neural_cleanse"},
        {"required": None},
        {"false_alarm_rate": 0},
        {"false_alarm_rate": 0.5},
        {"false_alarm_rate": -0.1},
        {"false_alarm_rate": float("nan")},
        {"false_alarm_rate": True},
        {"sandbox_level": {"onnx": -1}},
        {"sandbox_level": {"onnx": 5}},
        {"repair": {"max_accuracy_loss": float("nan")}},
        {"repair": {"max_attack_success": 1.5}},
        {"repair": {"unknown": 1}},
        {"guard": {"methods": ["strips"]}},
        {"guard": {"methods": ["strip", "strip"]}},
        {"guard": {"methods": ["strip"], "action": "vote"}},
        {"guard": {"action": "rejects"}},
        {"guard": {"false_rejection_rate": 0}},
        {"guard": {"false_rejection_rate": float("nan")}},
        {"guard": {"max_slowdown": 0.5}},
        {"guard": {"max_slowdown": float("nan")}},
        {"timeout_seconds": 0},
        {"valid_days": 0},
        {"memory_bytes": -1},
        {"alow_uncalibrated": True},
    ],
    ids=str,
)
def test_a_wrong_value_or_an_unknown_key_is_refused(tmp_path, fields):
    with pytest.raises(BadPolicy, match="not a valid policy"):
        read(tmp_path, **fields)


@pytest.mark.parametrize("text", ["", "[]", "just words", "name: [", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_policy_is_refused(tmp_path, text):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(BadPolicy, match="not a valid policy"):
        load_policy(path)


def test_a_policy_without_guards_of_its_own_has_the_shipped_ones(tmp_path):
    shipped = load_policy().guard
    assert read(tmp_path).guard == read(tmp_path, guard={"action": "reject"}).guard == shipped
    assert shipped.methods and read(tmp_path, guard={"methods": []}).guard.methods == ()


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadPolicy, match="VETGATE_POLICY"):
        load_policy(tmp_path / "none.yaml")


def test_the_digest_is_of_the_meaning_and_not_of_the_file(tmp_path):
    spelled_out = read(tmp_path, false_alarm_rate=0.05, sandbox_level=dict.fromkeys(reversed(formats()), 1))
    assert spelled_out.digest == read(tmp_path).digest


@pytest.mark.parametrize(
    "fields",
    [
        {"allow_uncalibrated": True},
        {"false_alarm_rate": 0.01},
        {"required": ["neural_cleanse", "abs"]},
        {"repair": {"blind": True}},
        {"sandbox_level": {"onnx": 2}},
    ],
    ids=str,
)
def test_whatever_moves_a_verdict_moves_the_digest(tmp_path, fields):
    assert read(tmp_path, **fields).digest != read(tmp_path).digest


def test_a_policy_cannot_be_altered_once_read():
    with pytest.raises(ValidationError):
        load_policy().allow_uncalibrated = True


@pytest.mark.parametrize("fields", [{"guard": {"enabled": False}}, {"spread": "dask"}], ids=str)
def test_what_moves_no_verdict_leaves_the_digest(tmp_path, fields):
    assert read(tmp_path, **fields).digest == read(tmp_path).digest


def test_the_actions_of_a_policy_are_those_of_a_guarded_model(tmp_path):
    given = Policy.model_json_schema()["$defs"]["GuardPolicy"]["properties"]["action"]["enum"]
    assert given == [action.value for action in Action]
    with pytest.raises(BadPolicy, match=r"expected each of the guards .*strip.* got \['strips'\]"):
        read(tmp_path, guard={"methods": ["strips"]})

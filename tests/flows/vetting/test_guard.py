"""Where no guard is fitted: a policy without, no trusted images, and runs that are no submission's own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from flows.gate.question import SECOND
from flows.params import Params
from flows.vetting.examine import Vetting, request_of
from flows.vetting.guard import guard_submission
from flows.vetting.seen import Seen
from tasks.guards.fit import Guarding
from tasks.sandbox.host import Limits
from tasks.settings import Settings
from tasks.vetting.inspect import Case, Data
from tasks.vetting.results import GuardRecord
from vetgate.trust.seeds import Seed
from vetgate.verdict.policy import GuardPolicy, Policy

MANIFEST = "ab" * 32


@pytest.fixture
def vetting() -> Vetting:
    case = Case(MANIFEST, "", {}, Seed(7, "cd" * 32), Limits(), Data({"repair": "r", "validate": "v", "test": "t"}))
    record: Any = SimpleNamespace(id=MANIFEST, submission=SimpleNamespace(training_data=None))
    params = Params(detect={}, repair={}, data={})
    return Vetting(Settings(), record, Policy(name="x", required=("y",)), params, case)


def test_a_policy_may_want_none(vetting: Vetting) -> None:
    for given in (GuardPolicy(enabled=False), GuardPolicy(methods=())):
        without = replace(vetting, policy=vetting.policy.model_copy(update={"guard": given}))
        assert guard_submission(without, ()) is None


def test_without_trusted_images_there_is_nothing_to_fit_one_on(vetting: Vetting) -> None:
    assert guard_submission(replace(vetting, case=replace(vetting.case, data=Data())), ()) is None


@pytest.mark.parametrize("run", [SECOND, "canary 2026-11-30-1"])
def test_an_independent_repetition_is_not_served(vetting: Vetting, run: str) -> None:
    assert guard_submission(replace(vetting, run=run), ()) is None


def test_the_gate_is_told_the_key_of_what_was_signed_and_of_nothing_else(vetting: Vetting) -> None:
    record = GuardRecord((), None, None, 0.0)
    told = [
        request_of(vetting, Seen(guards=g), 1).guards for g in (Guarding(record, "k"), Guarding(record, None), None)
    ]
    assert told == ["k", None, None]

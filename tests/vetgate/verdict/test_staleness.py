from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vetgate.verdict.reasons import Code, Reason
from vetgate.verdict.staleness import Pin, Pins, outdated
from vetgate.verdict.wording import rendered

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
MAX_AGE = timedelta(days=20)
DATA = {"name": "digits", "rev": "a" * 40, "path": "digits.npz", "sha256": "d" * 64, "splits": "5" * 64}
PINS = Pins({"abs": Pin("c" * 64, {"steps": 6, "share": 1.0})}, "b" * 64, "e" * 64, DATA)
CLAIMS: dict[str, Any] = {
    "issued": "2026-11-20T03:00:00Z",
    "methods": [{"name": "abs", "code": "c" * 64, "params": {"steps": 6, "share": 1}, "seed": 5}],
    "policy": {"name": "default", "sha256": "b" * 64},
    "calibration": {"id": "e" * 64},
    "reference_data": DATA,
}


def stale(pins: Pins = PINS, now: datetime = NOW, **said: Any) -> tuple[Reason, ...]:
    return outdated(CLAIMS | said, pins, now=now, max_age=MAX_AGE)


def test_a_verdict_made_with_what_is_there_now_is_fresh() -> None:
    assert stale() == ()


def test_a_verdict_grows_old_when_it_is_older_than_the_policy_allows() -> None:
    issued = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)
    assert stale(now=issued + MAX_AGE) == ()
    old = stale(now=issued + MAX_AGE + timedelta(seconds=1))
    assert [reason.code for reason in old] == [Code.TOO_OLD]
    assert rendered(old) == ["it is 20 days old, 20 are allowed"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"methods": {"abs": Pin("0" * 64, {"steps": 6, "share": 1.0})}}, "abs has other code"),
        ({"methods": {"abs": Pin("c" * 64, {"steps": 7, "share": 1.0})}}, "abs has other parameters"),
        ({"methods": {**PINS.methods, "strip": Pin("c" * 64, {})}}, "strip was not there"),
        ({"methods": {}}, "abs runs no longer"),
        ({"policy": "0" * 64}, "the policy changed"),
        ({"calibration": None}, "the calibration changed"),
        ({"calibration": "0" * 64}, "the calibration changed"),
        ({"data": None}, "the reference data changed"),
        ({"data": DATA | {"sha256": "0" * 64}}, "the reference data changed"),
        ({"data": DATA | {"splits": "0" * 64}}, "the reference data changed"),
        ({"data": DATA | {"training": "0" * 64}}, "the reference data changed"),
        ({"data": DATA | {"training_data": {"sha256": "0" * 64}}}, "the reference data changed"),
    ],
)
def test_every_pin_that_changed_is_named(changed: dict[str, Any], reason: str) -> None:
    assert rendered(stale(replace(PINS, **changed))) == [reason]


def test_the_same_bytes_at_another_commit_are_the_same_data() -> None:
    assert stale(replace(PINS, data=DATA | {"rev": "9" * 40, "path": "elsewhere.npz"})) == ()


def test_a_method_that_gave_no_evidence_has_nothing_that_could_change() -> None:
    failed = [*CLAIMS["methods"], {"name": "strip", "failure": "timed out"}]
    assert stale(methods=failed) == ()
    assert stale(replace(PINS, methods={**PINS.methods, "strip": Pin("c" * 64, {})}), methods=failed) == ()


def test_without_reference_data_then_and_now_nothing_changed() -> None:
    assert stale(replace(PINS, data={}), reference_data=None) == ()


def test_guards_that_would_be_fitted_otherwise_now_are_named_and_absent_ones_are_not() -> None:
    guarded = {"guards": {"settings": "f" * 64}}
    assert stale(replace(PINS, guards="f" * 64), **guarded) == ()
    for now in ("0" * 64, None):
        assert rendered(stale(replace(PINS, guards=now), **guarded)) == ["the run-time guards changed"]
    assert stale(replace(PINS, guards="f" * 64)) == stale(replace(PINS, guards="f" * 64), guards=None) == ()


def test_every_reason_is_given_at_once() -> None:
    assert len(stale(Pins({}, "0" * 64, None, None), now=NOW + timedelta(days=60))) == 5

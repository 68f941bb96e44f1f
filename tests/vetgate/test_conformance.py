"""Every registered method keeps what it promises, over a clean and a trojaned twin."""

from __future__ import annotations

import pytest

import vetgate.detect
import vetgate.repair  # noqa: F401
from tests.conformance import CHECKS, Twins, cases, checks_for, one_thread, twins
from vetgate.contract import DETECTORS, REPAIRS
from vetgate.inversion import attack_success
from vetgate.probe import accuracy

__all__ = ["one_thread", "twins"]

METHODS = [*DETECTORS.values(), *REPAIRS.values()]
CASES = cases(METHODS, checks_for)


def test_the_twins_differ_in_the_backdoor_alone(twins: Twins) -> None:
    x, y = twins.test.x, twins.test.y
    for subject in (twins.clean, twins.trojaned):
        assert accuracy(subject.model, x, y) > 0.95
    assert attack_success(twins.clean.model, x, y, twins.trigger) < 0.1
    assert attack_success(twins.trojaned.model, x, y, twins.trigger) > 0.9


def test_every_check_belongs_to_some_method() -> None:
    assert {c for m in METHODS for c in checks_for(m)} == set(CHECKS)


@pytest.mark.parametrize(("method", "check"), CASES)
def test_conformance(method, check, twins: Twins) -> None:  # type: ignore[no-untyped-def]
    check(method, twins)

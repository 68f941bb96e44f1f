"""Every registered method keeps what it promises, over a clean and a trojaned twin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_digits

import vetgate.detect
import vetgate.repair  # noqa: F401
from tests.conformance import CHECKS, Twins, checks_for, make_twins
from vetgate.contract import DETECTORS, REPAIRS
from vetgate.inversion import attack_success
from vetgate.probe import accuracy

METHODS = [*DETECTORS.values(), *REPAIRS.values()]
CASES = [
    pytest.param(
        method,
        check,
        id=f"{method.name}-{check.__name__}",
        marks=[pytest.mark.xfail(reason=method.waived[check.__name__], strict=True)]
        if check.__name__ in method.waived
        else [],
    )
    for method in METHODS
    for check in checks_for(method)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def twins(one_thread: None) -> Twins:
    digits = load_digits()
    return make_twins(digits.images, digits.target)


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

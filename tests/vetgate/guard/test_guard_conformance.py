"""Every registered guard keeps what it promises, over a clean and a trojaned twin."""

from __future__ import annotations

import pytest
from sklearn.datasets import load_digits

import vetgate.detect
import vetgate.guard  # noqa: F401
from tests.conformance import Twins, cases, make_twins, one_thread, twins
from tests.conformance_guards import CHECKS, Trial
from vetgate.errors import DefenceError
from vetgate.guard.contract import GUARDS
from vetgate.role import guard_roles

__all__ = ["one_thread", "twins"]

CASES = cases(GUARDS.values(), lambda _: CHECKS)


@pytest.fixture(scope="module")
def trial(twins: Twins) -> Trial:
    """The twins, as guards see them."""
    return Trial(twins)


@pytest.fixture(scope="module")
def normalised(one_thread: None) -> Trial:
    """Twins with batch normalisation."""
    digits = load_digits()
    return Trial(make_twins(digits.images, digits.target, "preact-resnet", epochs=6))


def test_what_is_declared_is_what_is_registered() -> None:
    assert guard_roles() == {name: guard.role for name, guard in GUARDS.items()}


@pytest.mark.parametrize(("guard", "check"), CASES)
def test_conformance(guard, check, request: pytest.FixtureRequest) -> None:  # type: ignore[no-untyped-def]
    check(guard, request.getfixturevalue("normalised" if guard.role.normalisation else "trial"))


def test_a_guard_of_normalised_networks_refuses_others(trial: Trial) -> None:
    refusing = [guard for guard in GUARDS.values() if guard.role.normalisation]
    assert refusing
    for guard in refusing:
        with pytest.raises(DefenceError, match="batch normalisation"):
            trial.fit(guard, trial.subject("clean"))

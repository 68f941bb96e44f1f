"""A rise over the stated rate is found soon and once; the stated rate itself is none."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom

from vetgate.guard.alarm_rate import EVERY, LEVEL, WINDOW, AlarmWindow, at_least

RATE = 0.05


def drawn(share: float, count: int, seed: int) -> list[bool]:
    """Whether guards alarm on so many inputs, each with this probability."""
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share).tolist()


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (100, 0.01), (1000, 0.05), (1000, 0.2)])
def test_the_tail_of_the_binomial_is_that_of_scipy(n: int, p: float) -> None:
    for k in {0, 1, n // 20, n // 10, n // 2, n}:
        assert at_least(k, n, p) == pytest.approx(float(binom.sf(k - 1, n, p)), rel=1e-8)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_the_stated_rate_itself_is_no_rise(rate: float) -> None:
    assert AlarmWindow(rate).add(drawn(rate, 200_000, seed=1)) is None


def test_the_level_is_what_a_single_look_keeps() -> None:
    # the same test at a level that can be counted: of independent looks, at most the stated share finds a rise
    level, looks = 0.02, 2000
    found = sum(
        AlarmWindow(RATE, window=EVERY, level=level).add(drawn(RATE, EVERY, seed)) is not None for seed in range(looks)
    )
    assert found <= binom.ppf(0.999, looks, level)
    assert level > LEVEL


def test_twice_the_stated_rate_is_found_within_a_window() -> None:
    rises = [AlarmWindow(RATE).add(drawn(2.2 * RATE, WINDOW, seed)) for seed in range(20)]
    assert all(rise is not None and rise.probability < LEVEL for rise in rises)


def test_where_every_input_alarms_it_is_found_at_the_first_look_and_once_a_window() -> None:
    window, found = AlarmWindow(RATE), []
    for number in range(3 * WINDOW):
        rise = window.add([True])
        if rise is not None:
            found.append((number + 1, rise.alarms, rise.inputs))
    assert found == [(EVERY + n * WINDOW, EVERY, EVERY) for n in range(3)]


def test_what_is_past_is_forgotten() -> None:
    window = AlarmWindow(RATE)
    assert window.add(([True] * 3 + [False] * 37) * 25) is None
    # both together would be a rise over the inputs that a window holds
    assert at_least(75 + 40, WINDOW, RATE) < LEVEL
    assert window.add(([True] * 2 + [False] * 48) * 20) is None


def test_how_the_inputs_come_makes_no_difference() -> None:
    alarmed = drawn(0.12, 4000, seed=3)
    one, other = AlarmWindow(RATE), AlarmWindow(RATE)
    at_once = [one.add(alarmed[start : start + WINDOW]) for start in range(0, 4000, WINDOW)]
    singly = [[other.add([a]) for a in alarmed[start : start + WINDOW]] for start in range(0, 4000, WINDOW)]
    assert [rise is not None for rise in at_once] == [any(rise is not None for rise in part) for part in singly]


@pytest.mark.parametrize("rate", [0.0, 1.0, float("nan")])
def test_a_rate_that_is_none_is_an_error(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        AlarmWindow(rate)

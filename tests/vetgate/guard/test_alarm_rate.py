"""A rise over the stated rate is found soon and once; what guards that were cut on few images may do is none."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import betabinom, binom

from vetgate.guard.alarm_rate import EVERY, LEVEL, WINDOW, AlarmWindow, at_least
from vetgate.guard.contract import Fitted, cut_for

# 50 of 1000 places: a rate of 5 % that is known well; and of 20, known badly
ABOVE, HELD = 50, 999


def drawn(share: float, count: int, seed: int) -> list[bool]:
    """Whether guards alarm on so many inputs, each with this probability."""
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share).tolist()


@pytest.mark.parametrize(("inputs", "above", "held"), [(1, 1, 1), (100, 1, 19), (1000, 50, 999), (1000, 40, 199)])
def test_the_tail_is_that_of_scipy(inputs: int, above: int, held: int) -> None:
    for k in {0, 1, inputs // 20, inputs // 10, inputs // 2, inputs}:
        expected = float(betabinom.sf(k - 1, inputs, above, held + 1 - above))
        assert at_least(k, inputs, above, held) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("held", [39, 199])
def test_the_null_is_that_of_a_cut_that_was_set_on_so_many_images(held: int) -> None:
    # scores of an odd distribution: none is assumed
    def alarms(seed: int) -> int:
        scores = torch.randn(held + EVERY, generator=torch.Generator().manual_seed(seed)) ** 3
        return int((scores[held:] > cut_for(scores[:held], 0.05)).sum())

    above = held + 1 - round((held + 1) * 0.95)
    trials = 4000
    found = [alarms(seed) for seed in range(trials)]
    for k in (5, 10, 15):
        share = sum(count >= k for count in found) / trials
        assert share == pytest.approx(at_least(k, EVERY, above, held), abs=0.03)


@pytest.mark.parametrize(("above", "held"), [(10, 999), (50, 999), (200, 999), (2, 39)])
def test_the_stated_rate_itself_is_no_rise(above: int, held: int) -> None:
    assert AlarmWindow(above, held).add(drawn(above / (held + 1), 200_000, seed=1)) is None


def test_a_cut_that_fell_low_by_chance_is_no_rise() -> None:
    # 400 images leave 7 % of clean ones above a cut for 5 % in one case of thirty
    assert AlarmWindow(20, 399).add(drawn(0.07, 200_000, seed=2)) is None
    assert AlarmWindow(5000, 99_999).add(drawn(0.09, 20_000, seed=2)) is not None


def test_the_level_is_what_a_single_look_keeps() -> None:
    # the same test at a level that can be counted, of a rate that is known as well as can be
    level, looks, held = 0.02, 2000, 10**6 - 1
    found = sum(
        AlarmWindow(50_000, held, window=EVERY, level=level).add(drawn(0.05, EVERY, seed)) is not None
        for seed in range(looks)
    )
    assert found <= binom.ppf(0.999, looks, level)
    assert level > LEVEL


def test_three_times_the_stated_rate_is_found_within_a_window() -> None:
    rises = [AlarmWindow(ABOVE, HELD).add(drawn(0.15, WINDOW, seed)) for seed in range(20)]
    assert all(rise is not None and rise.probability < LEVEL for rise in rises)


def test_where_every_input_alarms_it_is_found_at_the_first_look_and_once_a_window() -> None:
    window, found = AlarmWindow(ABOVE, HELD), []
    for number in range(3 * WINDOW):
        rise = window.add([True])
        if rise is not None:
            found.append((number + 1, rise.alarms, rise.inputs))
    assert found == [(EVERY + n * WINDOW, EVERY, EVERY) for n in range(3)]


def test_what_is_past_is_forgotten() -> None:
    window = AlarmWindow(ABOVE, HELD)
    assert window.add(([True] * 3 + [False] * 37) * 25) is None
    # both together would be a rise over the inputs that a window holds
    assert at_least(75 + 60, WINDOW, ABOVE, HELD) < LEVEL
    assert window.add(([True] * 3 + [False] * 47) * 20) is None


def test_how_the_inputs_come_makes_no_difference() -> None:
    alarmed = drawn(0.13, 4000, seed=3)
    one, other = AlarmWindow(ABOVE, HELD), AlarmWindow(ABOVE, HELD)
    at_once = [one.add(alarmed[start : start + WINDOW]) for start in range(0, 4000, WINDOW)]
    singly = [[other.add([a]) for a in alarmed[start : start + WINDOW]] for start in range(0, 4000, WINDOW)]
    assert any(at_once)
    assert [rise is not None for rise in at_once] == [any(rise is not None for rise in part) for part in singly]


def test_guards_add_up_and_one_that_tells_not_how_it_was_cut_counts_as_cut_on_fewest() -> None:
    def guard(rate: float, cut_on: int | None = None) -> Fitted:
        return Fitted({"x": torch.zeros(1)}, rate=rate, cut=0.0, cut_on=cut_on)

    def parts(*guards: Fitted) -> tuple[int, int]:
        window = AlarmWindow.of(guards)
        return window._above, window._held

    assert parts(guard(0.05, 999)) == (50, 999)
    assert parts(guard(0.02, 999), guard(0.03, 999)) == (50, 999)
    assert parts(guard(0.05)) == (1, 19)


@pytest.mark.parametrize("above", [0, 20])
def test_a_cut_that_is_none_is_an_error(above: int) -> None:
    with pytest.raises(ValueError, match="1 to 19 places"):
        AlarmWindow(above, 19)

"""Many labels and large images get less of a search each, down to a floor."""

from __future__ import annotations

import pytest

from vetgate.effort import Effort, effort, image_count, minibatch


@pytest.mark.parametrize(
    ("side", "expected"),
    [(8, Effort(128, 4)), (64, Effort(128, 4)), (96, Effort(57, 2)), (224, Effort(32, 1)), (1024, Effort(32, 1))],
)
def test_effort_goes_down_as_images_grow(side: int, expected: Effort) -> None:
    assert effort(side * side, most=128, look=4) == expected


def test_no_more_is_done_than_asked_for() -> None:
    assert effort(224 * 224, most=10, look=1) == Effort(10, 1)


def test_large_images_are_fewer_but_never_too_few() -> None:
    assert [image_count(side * side, 64) for side in (32, 64, 96, 224, 512)] == [64, 64, 28, 8, 8]
    assert image_count(224 * 224, 4) == 4


def test_a_step_takes_half_of_what_it_takes_of_small_images_where_they_are_large() -> None:
    assert [minibatch(side * side, 8) for side in (8, 64, 65, 224)] == [8, 8, 4, 4]
    assert minibatch(224 * 224, 1) == 1

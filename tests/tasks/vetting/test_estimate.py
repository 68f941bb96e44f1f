"""What is said before a vetting of how long it will take fits what the bank's members took."""

from __future__ import annotations

import math
from statistics import median

import pytest

import vetgate.detect  # noqa: F401 - registers the detectors
from flows.bank.networks import BANK, read_all
from tasks.vetting.estimate import EACH_LOOKED_AT, SEARCHED, SWEEPS, images_for, spoken
from vetgate.contract import DETECTORS

FOUND = {(f["method"], f["data"]): f for f in read_all(BANK / "evidence").values()}


@pytest.mark.parametrize("data", ["digits", "mnist", "gtsrb", "cifar10"])
def test_what_the_detectors_are_worth_in_images_is_what_the_bank_spent(data: str) -> None:
    inverted = FOUND["neural_cleanse", data]
    image = median(s["seconds"] / s["image_gradients"] for s in inverted["members"].values())
    spent = sum(
        median(s["seconds"] for s in found["members"].values() if "seconds" in s)
        for (_, name), found in FOUND.items()
        if name == data
    )
    assert 0.5 < images_for(inverted["classes"], math.prod(inverted["image"][1:]), training=True) / (spent / image) < 2


def test_many_labels_are_searched_in_part_and_large_images_less() -> None:
    given = DETECTORS["neural_cleanse"].defaults
    assert (given["most"], given["look"]) == (SEARCHED, SWEEPS)
    small, many, more = (images_for(classes, 32 * 32, training=False) for classes in (128, 1000, 2000))
    assert small < many < 3 * small and more - many == 1000 * EACH_LOOKED_AT
    assert images_for(1000, 224 * 224, training=False) < many / 2


def test_durations_are_said_as_people_say_them() -> None:
    assert [spoken(s) for s in (0.3, 44, 119, 150, 3600)] == ["10 s", "40 s", "120 s", "2 min", "60 min"]

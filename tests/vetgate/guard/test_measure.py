"""Which guards are chosen for a model, on guards whose scores and costs are known."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vetgate.guard.measure as measure
import vetgate.guard.package as package
from vetgate.contract import Samples, Subject, Trigger
from vetgate.errors import DefenceError, MissingInput
from vetgate.guard.contract import GUARDS, Fitted, Guard
from vetgate.guard.measure import Chosen, choose_guards, images_for, stamped, timed
from vetgate.role import GuardRole

ROLE = GuardRole(uses=None, title="Toy", sentence="Toys.")
CLASSES, SHAPE = 3, (1, 2, 2)
RATE = 0.1
CORNER = Trigger(torch.tensor([[[1.0, 0], [0, 0]]]), torch.full(SHAPE, 2.0), 1)


class Sums(nn.Module):
    """Logits that are sums of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :CLASSES]


def nothing(subject: Subject) -> Fitted:
    return Fitted({"nothing": torch.zeros(1)})


def keeping(subject: Subject, count: int) -> Fitted:
    return Fitted({"kept": torch.zeros(count)})


def broken(subject: Subject) -> Fitted:
    raise RuntimeError("this network is too small")


def brightest(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    return x.flatten(1).max(1).values


def slowly(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    until = time.process_time() + 0.05
    while time.process_time() < until:
        model(x)
    return brightest(fitted, model, x)


def samples(count: int, seed: int) -> Samples:
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return Samples(x, torch.arange(count) % CLASSES)


@pytest.fixture(autouse=True)
def guards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.02)
    for name, function, fit in (
        ("bright", brightest, nothing),
        ("bright_too", brightest, nothing),
        ("slow", slowly, nothing),
        ("broken", brightest, broken),
    ):
        monkeypatch.setitem(GUARDS, name, Guard(function, fit, name, ROLE, frozenset({"clean"}), ""))


def chosen(
    *wanted: str, max_slowdown: float = 1e9, triggers: tuple[Trigger, ...] = (), held: int = 99, rate: float = RATE
) -> Chosen:
    subject = Subject(model=Sums(), layer="", classes=CLASSES, clean=samples(20, 0), train=None)
    asked: dict[str, dict[str, Any]] = {name: {} for name in wanted}
    rates: dict[str, Any] = {"rate": rate, "max_slowdown": max_slowdown, "seed": 0}
    return choose_guards(subject, samples(held, 1), samples(90, 2), asked, [], triggers, **rates)


def test_what_is_rejected_is_measured_on_images_that_set_no_cut() -> None:
    found = chosen("bright", triggers=(CORNER,))
    (one,) = found.measured
    assert one.chosen and one.fitted.rate == RATE and one.triggered == 1.0
    test = samples(90, 2)
    cut = one.fitted.cut
    assert cut is not None and one.clean == float((test.x.flatten(1).max(1).values > cut).double().mean())
    assert 0 < one.clean <= 3 * RATE and found.clean == one.clean and found.guards == (one.fitted,)
    assert 0 < one.alone.bare < one.alone.guarded and one.batch.slowdown == one.batch.guarded / one.batch.bare


def test_a_guard_that_is_too_slow_is_listed_and_leaves_its_share_of_the_rate_to_the_others() -> None:
    found = chosen("bright", "slow", max_slowdown=100)
    fast, slow = found.measured
    assert (fast.chosen, slow.chosen) == (True, False) and slow.batch.slowdown > 100
    assert fast.fitted.rate == RATE and found.guards == (fast.fitted,)
    assert slow.clean is None and slow.triggered is None
    alone = chosen("bright").measured[0]
    assert (fast.fitted.cut, fast.clean) == (alone.fitted.cut, alone.clean)


def test_two_that_are_chosen_share_the_rate_and_what_either_rejects_counts() -> None:
    found = chosen("bright", "bright_too")
    assert [one.fitted.rate for one in found.measured] == [RATE / 2] * 2
    assert found.clean == found.measured[0].clean == found.measured[1].clean


def test_one_that_breaks_is_told_with_its_reason_and_takes_no_other_with_it() -> None:
    found = chosen("broken", "bright")
    assert [(one.guard, one.reason) for one in found.unfitted] == [
        ("broken", "RuntimeError: this network is too small")
    ]
    assert [one.guard for one in found.guards] == ["bright"] and found.measured[0].fitted.rate == RATE


@pytest.mark.parametrize(
    ("room", "refused"), [(500, ["large"]), (404, ["large"]), (400, ["large"]), (399, ["large", "medium"])]
)
def test_one_that_is_too_large_falls_out_and_leaves_its_share_of_the_rate_to_the_others(
    room: int, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MAX_BYTES", package.HEADER + room)
    for name, count in (("large", 200), ("medium", 99)):
        keeps = partial(keeping, count=count)
        monkeypatch.setitem(GUARDS, name, Guard(brightest, keeps, name, ROLE, frozenset({"clean"}), ""))
    found = chosen("large", "bright", "medium")
    assert [one.guard for one in found.unfitted] == refused
    assert "got 800 of large" in found.unfitted[0].reason and "leave it out" in found.unfitted[0].reason
    assert {one.fitted.guard for one in found.measured} == {"bright", "medium"} - set(refused)
    assert all(one.rate == RATE / len(found.guards) for one in found.guards)
    assert package.to_bytes(package.Package("a" * 64, found.guards))


def test_where_nothing_can_be_chosen_nothing_is_rejected_and_every_reason_is_there() -> None:
    found = chosen("broken", "bright", held=3)
    assert (found.guards, found.clean) == ((), None)
    assert "expected at least 9 trusted images" in {one.guard: one.reason for one in found.unfitted}["bright"]


def test_a_guard_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(DefenceError, match="expected a guard of this version"):
        chosen("nobody")


def test_a_trigger_is_stamped_on_images_of_other_classes_only() -> None:
    given = samples(90, 2)
    under = stamped(given, CORNER)
    assert len(under) == 60 and torch.equal(under[:, 0, 0, 0], torch.full((60,), 2.0))
    with pytest.raises(MissingInput, match="classes other than 1"):
        stamped(given[given.y == 1], CORNER)


def test_large_images_are_fewer() -> None:
    counts = [images_for(torch.zeros(1, 1, side, side), 128) for side in (8, 64, 100, 500)]
    assert counts == [512, 512, 209, 128]


def test_a_low_rate_takes_as_many_images_as_its_cuts_need_however_large_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "PIXELS", 1)
    found = chosen("bright", "bright_too", rate=0.01, held=250)
    assert [(one.fitted.rate, one.fitted.cut_on) for one in found.measured] == [(0.005, 199)] * 2
    assert [one.fitted.cut_on for one in chosen("bright", rate=0.05, held=250).measured] == [128]
    few = chosen("bright", "bright_too", rate=0.01, held=198)
    assert few.guards == () and all("at least 199" in one.reason for one in few.unfitted)


def test_no_image_is_scored_twice_where_a_look_at_it_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    scored: list[int] = []

    def counting(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
        scored.append(len(x))
        return brightest(fitted, model, x)

    monkeypatch.setitem(GUARDS, "counting", Guard(counting, nothing, "counting", ROLE, frozenset({"clean"}), ""))
    found = chosen("counting", triggers=(CORNER,))
    # the cut, one image alone, a batch of 64 and the test images beyond it, and those under the trigger
    assert scored == [99, 1, 64, 26, 60]
    assert found.clean == chosen("bright").clean


def test_a_long_call_is_timed_once_and_a_short_one_until_there_is_something_to_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[float] = []

    def spend(seconds: float) -> None:
        calls.append(seconds)
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass

    monkeypatch.setattr(measure, "SECONDS", 0.1)
    assert timed(lambda: spend(0.12))[0] >= 100 and len(calls) == 1
    assert timed(lambda: spend(0.02))[0] >= 20 and 3 <= len(calls) <= 8

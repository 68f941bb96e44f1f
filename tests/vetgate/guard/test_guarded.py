"""A network behind guards: what each action makes of an alarm, what is refused, and that callers do not meet."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
from vetgate.contract import Samples, Subject
from vetgate.errors import BadInput, DefenceError
from vetgate.guard.contract import GUARDS, Fitted, Guard, Vote
from vetgate.guard.guarded import Action, Guarded, Outcome, fit_guards
from vetgate.guard.package import Package
from vetgate.role import GuardRole

SHAPE = (1, 2, 2)
BRIGHT, VOTING = "brightness", "voting"


class Half(nn.Module):
    """Class 1 where the mean is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3))
        return torch.stack([1 - bright, bright], 1) * 10


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Two guards of these tests: the brightness of the first pixel, and one whose replicas all vote for class 0."""

    def brightness(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
        return x[:, 0, 0, 0]

    def voting(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
        return x[:, 0, 1, 1]

    def fit(subject: Subject) -> Fitted:
        return Fitted({"none": torch.zeros(1)})

    def vote(fitted: Fitted, model: nn.Module, x: Tensor) -> Vote:
        return Vote(torch.zeros(len(x), dtype=torch.int64), x[:, 0, 1, 0], x[:, 0, 1, 1])

    plain = GuardRole(uses=None, title="B", sentence="B.")
    GUARDS[BRIGHT] = Guard(brightness, fit, BRIGHT, plain, frozenset({"clean"}), "")
    GUARDS[VOTING] = Guard(voting, fit, VOTING, plain, frozenset({"clean"}), "", voting=vote)
    yield
    del GUARDS[BRIGHT], GUARDS[VOTING]


def fitted(name: str, share: float | None = None) -> Fitted:
    return Fitted({"none": torch.zeros(1)}, guard=name, cut=0.8, rate=0.01, share=share)


def guarded(action: Action, *names: str) -> Guarded:
    each = tuple(fitted(name, 0.5 if name == VOTING else None) for name in names)
    return Guarded(Half(), Package("a" * 64, each), SHAPE, action=action)


def image(first: float = 0.0, share: float = 1.0, last: float = 0.0) -> Tensor:
    return torch.tensor([[[first, 0.9], [share, last]]])


def test_an_input_that_no_guard_minds_is_accepted() -> None:
    (answer,) = guarded(Action.REJECT, BRIGHT).predict(image()[None])
    assert (answer.label, answer.outcome, answer.alarms) == (0, Outcome.ACCEPT, ())
    assert answer.scores == {BRIGHT: 0.0} and 0.5 < answer.score <= 1


def test_a_rejected_input_gets_no_label_and_the_guard_is_named() -> None:
    (answer,) = guarded(Action.REJECT, BRIGHT, VOTING).predict(image(first=0.9)[None])
    assert (answer.label, answer.outcome, answer.alarms) == (None, Outcome.REJECT, (BRIGHT,))


def test_logging_only_keeps_the_label_and_tells_the_alarm() -> None:
    (answer,) = guarded(Action.LOG_ONLY, BRIGHT).predict(image(first=0.9)[None])
    assert (answer.label, answer.outcome, answer.alarms) == (1, Outcome.ACCEPT, (BRIGHT,))


@pytest.mark.parametrize(
    ("given", "label", "outcome"),
    [
        (image(share=0.9, last=0.95), 0, Outcome.ACCEPT),  # the vote corrects what its own guard alarms on
        (image(share=0.4), None, Outcome.ABSTAIN),
        (image(first=0.9), None, Outcome.REJECT),  # what another guard alarms on is no matter for a vote
    ],
)
def test_a_vote_corrects_abstains_and_lets_other_guards_reject(
    given: Tensor, label: int | None, outcome: Outcome
) -> None:
    (answer,) = guarded(Action.VOTE, BRIGHT, VOTING).predict(given[None])
    assert (answer.label, answer.outcome) == (label, outcome)


def test_a_vote_without_a_guard_that_votes_is_an_error() -> None:
    with pytest.raises(DefenceError, match="votes"):
        guarded(Action.VOTE, BRIGHT)


def test_a_score_at_the_cut_passes_and_one_that_is_no_number_does_not() -> None:
    behind = guarded(Action.REJECT, BRIGHT)
    first, second = torch.tensor(0.8).item(), torch.nextafter(torch.tensor(0.8), torch.tensor(1.0)).item()
    cut = Guarded(Half(), Package("a" * 64, (Fitted({}, guard=BRIGHT, cut=first, rate=0.01),)), SHAPE)
    assert [a.outcome for a in cut.predict(torch.stack([image(first), image(second)]))] == ["accept", "reject"]
    GUARDS[BRIGHT] = Guard(
        lambda f, m, x: torch.full((len(x),), math.nan),
        lambda s: fitted(BRIGHT),
        BRIGHT,
        GUARDS[BRIGHT].role,
        frozenset({"clean"}),
        "",
    )
    assert behind.predict(image()[None])[0].outcome is Outcome.REJECT


def test_a_guard_without_a_cut_rejects_everything() -> None:
    (answer,) = Guarded(Half(), Package("a" * 64, (Fitted({}, guard=BRIGHT),)), SHAPE).predict(image()[None])
    assert answer.outcome is Outcome.REJECT


def test_what_the_network_says_nothing_of_is_rejected_under_every_action() -> None:
    class Broken(Half):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.mean((1, 2, 3), keepdim=False)[:, None] > 0.9, math.nan, super().forward(x))

    behind = Guarded(Broken(), Package("a" * 64, (fitted(BRIGHT),)), SHAPE, action=Action.LOG_ONLY)
    answers = behind.predict(torch.stack([image(), torch.ones(SHAPE)]))
    assert [(a.label, a.outcome) for a in answers] == [(0, Outcome.ACCEPT), (None, Outcome.REJECT)]


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(1, 1, 3, 2),
        torch.rand(1, 2, 2),
        torch.rand(0, 1, 2, 2),
        torch.rand(1, 1, 2, 2).double(),
        torch.full((1, 1, 2, 2), math.nan),
        torch.full((1, 1, 2, 2), -0.01),
        torch.full((1, 1, 2, 2), 255.0),
    ],
)
def test_what_are_no_images_of_this_shape_is_refused_before_it_is_run(x: Tensor) -> None:
    with pytest.raises(BadInput, match="expected"):
        guarded(Action.REJECT, BRIGHT).predict(x)


def test_callers_at_once_get_what_they_get_one_after_another() -> None:
    behind = guarded(Action.REJECT, BRIGHT)
    batches = [torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(n)) for n in range(24)]
    alone = [behind.predict(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(behind.predict, batches)) == alone


def test_callers_at_once_do_not_meet_a_guard_that_hooks_into_the_network() -> None:
    class Normalised(nn.Module):
        """Class 1 where the last of two normalisations gives much; other threads have their turn before that."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.first(x)
            time.sleep(1e-4)
            bright = self.second(out).mean((1, 2, 3))
            return torch.stack([torch.zeros(len(x)), 10 * (bright - 0.6)], 1)

    x = torch.rand(120, *SHAPE, generator=torch.Generator().manual_seed(0))
    samples = Samples(x, torch.zeros(120, dtype=torch.int64))
    subject = Subject(model=Normalised().eval(), layer="", classes=2, clean=samples[:60])
    hooking = [name for name, guard in GUARDS.items() if guard.role.normalisation]
    made, failed = fit_guards(subject, samples[60:], {name: {} for name in hooking}, rate=0.2, seed=0)
    assert made and not failed
    behind = Guarded(subject.model, Package("a" * 64, made), SHAPE)
    batches = [torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(n)) for n in range(40)]
    alone = [behind.predict(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(behind.predict, batches)) == alone


def test_guards_share_the_rate_and_those_that_cannot_be_fitted_are_told() -> None:
    x = torch.rand(300, *SHAPE, generator=torch.Generator().manual_seed(0))
    samples = Samples(x, torch.zeros(300, dtype=torch.int64))
    subject = Subject(model=Half(), layer="", classes=2, clean=samples[:100])
    refused = next(name for name, guard in sorted(GUARDS.items()) if guard.role.uses is not None)
    made, failed = fit_guards(subject, samples[100:], {BRIGHT: {}, VOTING: {}, refused: {}}, rate=0.1, seed=1)
    assert [(f.guard, f.rate) for f in made] == [(BRIGHT, 0.05), (VOTING, 0.05)]
    assert [u.guard for u in failed] == [refused] and "evidence" in failed[0].reason
    few, none = fit_guards(subject, samples[100:110], {BRIGHT: {}}, rate=0.05, seed=1)
    assert few == () and "at least 19" in none[0].reason
    with pytest.raises(DefenceError, match="no-such"):
        fit_guards(subject, samples, {"no-such": {}}, rate=0.1, seed=1)

"""What fitted guards cost and what they reject, measured on images that none of them was fitted or cut on.

Costs are processor time, which another load of the host does not change; which of the guards is cheap enough for a
model follows from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from vetgate.contract import Evidence, Samples, Subject, Trigger
from vetgate.errors import MissingInput
from vetgate.guard.contract import GUARDS, Fitted, fewest_to_cut, probabilities
from vetgate.guard.guarded import Unfitted, fit_guards
from vetgate.guard.package import too_large

# images of a prediction that is timed: one by itself, and a batch
BATCH = 64
# for how long each is repeated: some kernels count processor time in hundredths of a second only
SECONDS = 0.2
# images that cuts are set and rejections counted on: as many as a fixed number of pixels holds, within bounds. A cut
# leans on its few highest scores, and needs more of them than a count that is only stated; for a low rate more still
PIXELS, FEWEST_HELD, FEWEST_TESTED, MOST = 2**21, 128, BATCH, 512

Given = TypeVar("Given")


@dataclass(frozen=True)
class Cost:
    """Milliseconds of processor time of one prediction by the bare network, and by the network with the guard."""

    bare: float
    guarded: float

    @property
    def slowdown(self) -> float:
        """How many times as long it takes with the guard."""
        return self.guarded / self.bare


@dataclass(frozen=True, eq=False)
class Measured:
    """A fitted guard: its costs for one image and for a batch of 64, and what it rejects, None where not measured.

    `clean` is the share of test images that it rejects, `triggered` that of test images of other classes under the
    triggers. One that is too slow is not `chosen`, and nothing else of it is measured.
    """

    fitted: Fitted
    alone: Cost
    batch: Cost
    chosen: bool
    clean: float | None = None
    triggered: float | None = None


@dataclass(frozen=True, eq=False)
class Chosen:
    """Guards that were fitted, those that could not be, and the share of test images that the chosen ones reject."""

    measured: tuple[Measured, ...]
    unfitted: tuple[Unfitted, ...]
    clean: float | None

    @property
    def guards(self) -> tuple[Fitted, ...]:
        """The chosen ones."""
        return tuple(one.fitted for one in self.measured if one.chosen)


def choose_guards(
    subject: Subject,
    held: Samples,
    test: Samples,
    wanted: Mapping[str, Mapping[str, Any]],
    evidence: Sequence[Evidence],
    triggers: Sequence[Trigger],
    *,
    rate: float,
    max_slowdown: float,
    seed: int,
    each: Callable[[str], None] | None = None,
) -> Chosen:
    """The wanted guards (name -> parameters) fitted to a subject, those that are fast enough chosen, all measured.

    The chosen ones together reject at most the share `rate` of clean inputs, and fit into one file; `held` are trusted
    images to cut on, `test` to measure on. `each` is called with what is done next.
    """
    least = fewest_to_cut(rate / max(1, len(wanted)))
    held, test = held[: max(least, images_for(held.x, FEWEST_HELD))], test[: images_for(test.x, FEWEST_TESTED)]
    fitted, unfitted = fit_guards(subject, held, wanted, *evidence, rate=rate, seed=seed, each=each)
    bare = [timed(partial(probabilities, subject.model, x))[0] for x in (test.x[:1], test.x[:BATCH])]
    costs = [_timed(subject, one, test.x, bare, max_slowdown) for one in fitted]
    large = too_large([one.fitted for one, _ in costs if one.chosen])
    unfitted += tuple(Unfitted(name, reason) for name, reason in large.items())
    costs = [(one, first) for one, first in costs if one.fitted.guard not in large]
    chosen = [one.fitted for one, _ in costs if one.chosen]
    rejected = torch.zeros(len(test), dtype=torch.bool)
    measured = []
    for one, first in costs:
        if one.chosen:
            if each is not None:
                each(f"{one.fitted.guard}, measured")
            # those that are left may use what others would have rejected
            own, cut = rate / len(chosen), one.fitted
            if cut.rate != own:
                cut = GUARDS[cut.guard].with_cut(cut, subject.model, held.x, rate=own)
            # those that were timed have their scores
            rest = [_scores(cut, subject, test.x[BATCH:])] if len(test) > BATCH else []
            clean = _above(cut, torch.cat([first, *rest]))
            rejected |= clean
            triggered = [_above(cut, _scores(cut, subject, stamped(test, trigger))) for trigger in triggers]
            found = float(torch.cat(triggered).double().mean()) if triggered else None
            one = Measured(cut, one.alone, one.batch, True, float(clean.double().mean()), found)
        measured.append(one)
    return Chosen(tuple(measured), unfitted, float(rejected.double().mean()) if chosen else None)


def stamped(samples: Samples, trigger: Trigger) -> Tensor:
    """At most 64 images of other classes than the trigger's target, under it; raises MissingInput if there are none."""
    other = samples.x[samples.y != trigger.target][:BATCH]
    if len(other) == 0:
        raise MissingInput(f"expected images of classes other than {trigger.target}, got none; add clean samples")
    return trigger.stamp(other)


def images_for(x: Tensor, fewest: int) -> int:
    """How many of images x (N, C, H, W) serve one purpose: where they are large not so many, but at least `fewest`."""
    return max(fewest, min(MOST, PIXELS // max(1, x[0, 0].numel())))


def timed(call: Callable[[], Given]) -> tuple[float, Given]:
    """Mean milliseconds of processor time of a call, and what it gave.

    The first one, which warms up, counts only where it is long.
    """
    started = time.process_time()
    given = call()
    spent, calls = time.process_time() - started, 1
    if spent < SECONDS:
        started, spent, calls = time.process_time(), 0.0, 0
        while spent < SECONDS:
            given = call()
            spent, calls = time.process_time() - started, calls + 1
    return 1000 * spent / calls, given


def _timed(
    subject: Subject, fitted: Fitted, x: Tensor, bare: Sequence[float], max_slowdown: float
) -> tuple[Measured, Tensor]:
    """What a guard costs, and the scores of the first images of x (M, C, H, W), at most a batch of them."""
    one, _ = timed(partial(_scores, fitted, subject, x[:1]))
    many, scores = timed(partial(_scores, fitted, subject, x[:BATCH]))
    alone, batch = (Cost(without, without + more) for without, more in zip(bare, (one, many), strict=True))
    return Measured(fitted, alone, batch, batch.slowdown <= max_slowdown), scores


def _scores(fitted: Fitted, subject: Subject, x: Tensor) -> Tensor:
    return GUARDS[fitted.guard].score(fitted, subject.model, x)


def _above(fitted: Fitted, scores: Tensor) -> Tensor:
    """Which scores (M,) a guard with a cut rejects: boolean (M,); what is no number is rejected too."""
    assert fitted.cut is not None
    return ~(scores <= fitted.cut)

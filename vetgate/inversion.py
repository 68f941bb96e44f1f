"""Trigger inversion for all labels at once: the smallest mask and pattern that send images to a label.

Each label holds its own mask, pattern, Adam state and cost weight. Labels run in blocks, few enough that what one pass
computes stays in cache; a label that has settled drops out. Logits are divided by their spread on clean images, so
that a model which scales them gets the same triggers, and one in which single logits lie far out gains nothing; every
label starts from the same random mask and sees the same images, so that permuting the classes permutes the triggers.
Blocks know nothing of each other but for the race, so they may be computed in any place (vetgate/replay.py) with the
same bits.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019.
Deviates  Images of the target class are left out of loss and success; masks are not quantised; the cost weight moves
          once a sweep of `sweep` minibatches; after the share `race` of the sweeps only labels with masks at or below
          the median go on, since the larger ones move neither the median nor the lower tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vetgate.contract import Trigger, pack, report, unpack
from vetgate.errors import DefenceError
from vetgate.probe import logits, median
from vetgate.replay import Call, Computed, next_call
from vetgate.search import Course, Schedule, Search, paint

__all__ = ["Inverted", "Schedule", "attack_success", "invert", "logit_scale"]

# images in one pass: enough to fill the cores, few enough to stay in cache; and their pixels, so that large images take
# little memory
PASS, PIXELS = 128, 2**17
# a spread of logits beyond so many leads is no unit; it is 0.3 to 1.4 of them in clean networks, the weakest included
WIDEST = 2.0
# among so few labels the median says nothing, and all run to the end
NO_RACE = 3


@dataclass(frozen=True, eq=False)
class Inverted:
    """One trigger per requested label (T): mask norms (T,) in pixels, success (T,) on the images inverted on."""

    triggers: tuple[Trigger, ...]
    norms: Tensor
    success: Tensor


def logit_scale(model: nn.Module, x: Tensor) -> float:
    """The unit that inversion measures logits in: their median spread over classes on images (N, C, H, W).

    It is at most WIDEST times what the largest lies above the upper quartile: a few weights of the head can make some
    logit an outlier on every image and change no prediction, and margins that matter would be nothing beside it.
    """
    out = logits(model, x)
    lead = out.amax(1) - out.quantile(0.75, dim=1, interpolation="lower")
    scale = min(median(out.std(1)), WIDEST * median(lead))
    if not scale > 0:
        raise DefenceError("the model gives the same logit to every class, expected a classifier; check the file")
    return scale


def attack_success(model: nn.Module, x: Tensor, y: Tensor, trigger: Trigger) -> float:
    """Share of images (N, C, H, W) of other classes that the trigger sends to its target."""
    other = x[y != trigger.target]
    if len(other) == 0:
        raise DefenceError(f"expected images of classes other than {trigger.target}, got none; add clean samples")
    return float((logits(model, trigger.stamp(other)).argmax(1) == trigger.target).float().mean())


def invert(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    targets: Sequence[int],
    *,
    sweeps: int = 60,
    sweep: int = 4,
    batch: int = 32,
    lr: float = 0.1,
    race: float = 0.5,
    settle: int = 15,
    schedule: Schedule | None = None,
    share: tuple[float, float] = (0.0, 1.0),
    seed: int | None = None,
) -> Inverted:
    """Invert a trigger for each of `targets` on images x (N, C, H, W) in [0, 1] with labels y (N,).

    Needs images of at least one class besides each target. Progress is reported over the range `share`. Calls with the
    same `seed` start alike and see the same minibatches; without one it is drawn.
    """
    for target in targets:
        if bool((y == target).all()):
            raise DefenceError(f"expected images of classes other than {target}, got none; add clean samples")
    # all that this takes from the caller's stream, so that it is the same stream afterwards where blocks are known
    drawn = int(torch.randint(2**62, ()))
    call = next_call()
    if call is not None and call.result is not None:
        report(share[1])
        return _inverted(targets, *(unpack(call.result[name]) for name in ("best", "success")))
    if not targets:
        return Inverted((), torch.empty(0), torch.empty(0))
    turn = sweeps if len(targets) <= NO_RACE else round(race * sweeps)
    search = Search(
        model,
        x,
        y,
        seed=drawn if seed is None else seed,
        scale=logit_scale(model, x),
        sweeps=sweeps,
        sweep=sweep,
        batch=batch,
        lr=lr,
        settle=settle,
        plan=schedule or Schedule(),
    )
    images = min(PASS, PIXELS // x[0, 0].numel())
    halves = _Halves(search, call, max(1, images // min(batch, len(x))), (range(turn), range(turn, sweeps)), share)
    course = halves.run(Course.begin(list(targets), search.start))
    if call is not None:
        call.finish({"best": pack(course.best), "success": pack(course.best_success)})
    return _inverted(targets, course.best, course.best_success)


def _inverted(targets: Sequence[int], best: Tensor, success: Tensor) -> Inverted:
    mask, pattern = paint(best)
    triggers = tuple(Trigger(m, p, int(t)) for m, p, t in zip(mask, pattern, targets, strict=True))
    return Inverted(triggers, mask.sum((1, 2, 3)), success)


@dataclass(frozen=True, eq=False)
class _Halves:
    """The two phases of an inversion, before and after the race, each in blocks of at most `size` labels."""

    search: Search
    call: Call | None
    size: int
    sweeps: tuple[range, range]
    share: tuple[float, float]

    def run(self, course: Course) -> Course:
        """Every label's course at its end."""
        wanted = None if self.call is None else self.call.wanted
        if wanted is not None:
            raise Computed(self._alone(course, *wanted).to_json())
        course = self._phase(0, course)
        left = course.live & (course.best_norm <= course.best_norm.quantile(0.5, interpolation="higher"))
        rows = left.nonzero().flatten()
        if len(rows) and self.sweeps[1]:
            course.put(rows, self._phase(1, course[rows]))
        report(self.share[1])
        return course

    def _phase(self, phase: int, course: Course) -> Course:
        if self.call is not None:
            starts = [part.to_json() if phase else None for part in course.blocks(self.size)]
            return Course.joined([Course.from_json(blob) for blob in self.call.known(phase, starts)])
        blocks = torch.arange(len(course)).split(self.size)  # type: ignore[no-untyped-call]
        for i, rows in enumerate(blocks):
            course.put(rows, self._block(phase, course[rows], i, len(blocks)))
        return course

    def _block(self, phase: int, part: Course, place: int, count: int) -> Course:
        sweeps, total = self.sweeps[phase], self.sweeps[1].stop
        first, last = self.share

        def heard(done: float) -> None:
            passed = sweeps.start + (place + done) / count * len(sweeps)
            report(first + (last - first) * passed / total)

        return self.search.run(part, sweeps, heard)

    def _alone(self, course: Course, phase: int, place: int) -> Course:
        assert self.call is not None
        start = self.call.replay.start
        part = course.blocks(self.size)[place] if start is None else Course.from_json(start)
        return self._block(phase, part, 0, 1)

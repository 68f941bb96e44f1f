"""Whether guards alarm more often than they were set to: a one-sided test over the newest inputs.

A cut that was set on n trusted images leaves a share of the images like them above it that is known only so well: it
has a beta distribution, whatever the scores look like, and the alarms among N further ones a beta-binomial one. As many
alarms as are less probable than `LEVEL` are a rise. It is looked for each `EVERY` inputs, over the newest `WINDOW`, so
that guards which keep what they state raise less than one in a hundred million inputs, over all cuts that there may be.
Inputs that resemble each other alarm together, and inputs of another kind than the trusted images more often: both are
worth a look, and neither is a proof of an attack.

Source    Wilks, "Determination of sample sizes for setting tolerance limits", Annals of Mathematical Statistics 1941.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vetgate.guard.contract import Fitted, fewest_to_cut, rank_of_cut

WINDOW, EVERY = 1000, 100
LEVEL = 1e-6


@dataclass(frozen=True)
class Rise:
    """So many of so many inputs alarmed, and how probable as many are where guards keep what they state."""

    alarms: int
    inputs: int
    probability: float


class AlarmWindow:
    """The newest inputs of guards that alarm above `above` of the n + 1 places among `held` = n trusted images.

    After a rise as many inputs as a window holds are seen before there can be another.
    """

    def __init__(
        self, above: int, held: int, *, window: int = WINDOW, every: int = EVERY, level: float = LEVEL
    ) -> None:
        if not 0 < above <= held:
            raise ValueError(f"expected 1 to {held} places above the cut, got {above}")
        self._above, self._held, self._every, self._level = above, held, every, level
        self._newest: deque[bool] = deque(maxlen=window)
        self._alarms = self._since_look = self._rest = 0

    @classmethod
    def of(cls, guards: Sequence[Fitted]) -> AlarmWindow:
        """The window of guards that were cut on the same images, whose alarms add up where they share none."""
        # one that does not tell had as few as can tell its rate, which says least
        held = [fewest_to_cut(g.rate or 1) if g.cut_on is None else g.cut_on for g in guards]
        above = sum(n + 1 - rank_of_cut(n, g.rate or 0) for n, g in zip(held, guards, strict=True))
        return cls(min(above, min(held)), min(held))

    def add(self, alarmed: Iterable[bool]) -> Rise | None:
        """See further inputs, whether guards alarmed on each; a rise, if there is one by now."""
        found = None
        for each in alarmed:
            found = self._see(each) or found
        return found

    def _see(self, alarmed: bool) -> Rise | None:
        if self._rest:
            self._rest -= 1
            return None
        newest = self._newest
        self._alarms += alarmed - (newest[0] if len(newest) == newest.maxlen else False)
        newest.append(alarmed)
        self._since_look += 1
        if self._since_look < self._every:
            return None
        self._since_look = 0
        probability = at_least(self._alarms, len(newest), self._above, self._held)
        if probability >= self._level:
            return None
        found = Rise(self._alarms, len(newest), probability)
        self._rest = (newest.maxlen or 0) - self._every
        newest.clear()
        self._alarms = 0
        return found


def at_least(alarms: int, inputs: int, above: int, held: int) -> float:
    """The probability that of so many inputs as many or more lie in `above` of the n + 1 places among `held` = n."""
    if alarms <= 0:
        return 1.0
    below = held + 1 - above
    whole = math.lgamma(inputs + 1) - _log_beta(above, below)
    terms = (
        whole - math.lgamma(k + 1) - math.lgamma(inputs - k + 1) + _log_beta(k + above, inputs - k + below)
        for k in range(alarms, inputs + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

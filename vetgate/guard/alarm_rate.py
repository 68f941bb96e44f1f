"""Whether guards alarm more often than they were set to: a one-sided binomial test over the newest inputs.

Of n clean inputs, guards with a false-rejection rate p alarm on a binomial number; as many as are less probable than
`LEVEL` are a rise. It is looked for each `EVERY` inputs, over the newest `WINDOW`: at the stated rate itself it is
found once in a hundred million inputs or less. Inputs that resemble each other alarm together, and inputs of another
kind than the trusted images more often: both are worth a look, and neither is a proof of an attack.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

WINDOW, EVERY = 1000, 100
LEVEL = 1e-6


@dataclass(frozen=True)
class Rise:
    """So many of so many inputs alarmed, and how probable as many are at the stated rate."""

    alarms: int
    inputs: int
    probability: float


class AlarmWindow:
    """The newest inputs of guards that together alarm on at most the share `rate` of clean ones.

    After a rise as many inputs as a window holds are seen before there can be another.
    """

    def __init__(self, rate: float, *, window: int = WINDOW, every: int = EVERY, level: float = LEVEL) -> None:
        if not 0 < rate < 1:
            raise ValueError(f"expected a rate between 0 and 1, got {rate}")
        self._rate, self._every, self._level = rate, every, level
        self._newest: deque[bool] = deque(maxlen=window)
        self._alarms = self._since_look = self._rest = 0

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
        probability = at_least(self._alarms, len(newest), self._rate)
        if probability >= self._level:
            return None
        found = Rise(self._alarms, len(newest), probability)
        self._rest = (newest.maxlen or 0) - self._every
        newest.clear()
        self._alarms = 0
        return found


def at_least(successes: int, trials: int, probability: float) -> float:
    """The probability that a binomial number of `trials` is `successes` or more."""
    if successes <= 0:
        return 1.0
    whole = math.lgamma(trials + 1)
    terms = (
        whole
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(probability)
        + (trials - k) * math.log1p(-probability)
        for k in range(successes, trials + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))

"""What is served now: a model that is covered, asked for again and again, and nothing as soon as it is not.

What the registry names and what covers that is asked every so often, and shortly before the answer runs out. Another
version takes the place of the one before; what is denied is served no more, nor what another should take the place of
and cannot. Store or registry that give no answer are waited for as long as the last answer lasts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from vetgate.errors import StoreError, VetgateError
from vetgate.guard.guarded import Guarded
from vetgate.trust.keys import utc_now

EVERY_SECONDS = 60.0
# how long before the end it is asked again, and how long after a failure
EARLY_SECONDS, RETRY_SECONDS = 30.0, 5.0
# how long what was served before is served on while another is loaded, which may wait for the registry for half an hour
LOADING_SECONDS = 60.0
logger = logging.getLogger("vetgate.serve")


@dataclass(frozen=True, eq=False)
class Served:
    """A guarded network under its name in production, the names of its classes, and what covers it until when.

    `attestation` is the digest of the verdict; `rate` is the share of clean images that its guards reject at most, as
    the verdict states it.
    """

    name: str
    version: str
    manifest: str
    attestation: str
    until: datetime
    guarded: Guarded
    classes: tuple[str, ...]
    rate: float


class Current:
    """The model that is served, or why none is.

    `load` gives it, and raises where nothing covers it; `covered_until` says until when what is served is covered, None
    where that is another version or another verdict by now, and raises as `load`. Raises whatever `load` raises first.
    """

    def __init__(
        self,
        load: Callable[[], Served],
        covered_until: Callable[[Served], datetime | None],
        *,
        every: float = EVERY_SECONDS,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._load, self._covered_until, self._every, self._now = load, covered_until, every, now
        self._over, self.why, self._ends = threading.Event(), "", 0.0
        self._set(load())

    def get(self) -> Served | None:
        """What is served; None, with the reason in `why`, where nothing covers it now."""
        served = self._served
        if served is not None and self._now() >= served.until:
            self.why = f"expected a model that is covered, got one that was until {served.until}; vet it again"
            return None
        if served is not None and time.monotonic() >= self._ends:
            self.why = "expected an answer on what covers the model, got none in time; see that store and registry run"
            return None
        return served

    def ask_again(self) -> None:
        """Ask once whether what is served is still what the registry names, and covered."""
        served = self._served
        try:
            until = None if served is None else self._covered_until(served)
        except StoreError as error:
            # no answer says nothing; the last one lasts until its end
            logger.warning("it could not be asked whether the model is covered: %s", error)
            return
        except Exception as error:
            self._drop(error)
            return
        if served is not None and until is not None:
            self._set(replace(served, until=until))
            return
        self._ends = min(self._ends, time.monotonic() + LOADING_SECONDS)
        try:
            self._set(self._load())
        except Exception as error:
            # whatever it is: what was served before is another than the registry names
            self._drop(error)

    def keep_asking(self) -> None:
        """Ask until `close`, in a thread of its own."""
        threading.Thread(target=self._run, name="coverage", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._pause()):
            self.ask_again()

    def _pause(self) -> float:
        served = self._served
        if served is None:
            return min(self._every, RETRY_SECONDS)
        left = (served.until - self._now()).total_seconds() - EARLY_SECONDS
        return min(self._every, max(left, RETRY_SECONDS))

    def _set(self, served: Served) -> None:
        left = (served.until - self._now()).total_seconds()
        # a clock that is set back meanwhile prolongs nothing
        self._ends = time.monotonic() + left
        self._served: Served | None = served

    def _drop(self, error: Exception) -> None:
        if not isinstance(error, VetgateError):
            logger.exception("nothing is served: what covers the model is not known", exc_info=error)
        elif str(error) != self.why:
            logger.error("nothing is served: %s", error)
        self.why = str(error) if isinstance(error, VetgateError) else "expected to know what covers it; see the log"
        self._served = None

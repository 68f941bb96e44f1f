"""What becomes of answers after they were given: rejected images are kept, and a rise of alarms is told of.

Both are done beside the serving: what comes faster than it can be kept is counted and not kept.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from torch import Tensor

from flows.production.predictions import prediction
from flows.service.scoring.current import Served
from flows.service.scoring.metrics import Metrics
from tasks import events
from tasks.rejected import Pixels, Rejection, keep
from tasks.settings import Settings
from vetgate.errors import StoreError
from vetgate.guard.alarm_rate import AlarmWindow, Rise
from vetgate.guard.guarded import Answer, Outcome

# images that wait to be kept
WAITING = 256
# whoever sends what is rejected could have models vetted again all day
REST_SECONDS = 3600.0
CLOSE_SECONDS = 5.0
logger = logging.getLogger("vetgate.serve")


class Aftermath:
    """Keeps rejected images under the settings' home, and emits events."""

    def __init__(self, settings: Settings, metrics: Metrics, *, rest: float = REST_SECONDS) -> None:
        self._settings, self._metrics, self._rest = settings, metrics, rest
        self._waiting: queue.Queue[tuple[Rejection, Pixels] | None] = queue.Queue(WAITING)
        self._turn, self._of = threading.Lock(), ""
        self._window: AlarmWindow | None = None
        # by verdict, so that a version that takes the place of another is told of at once
        self._told: dict[str, float] = {}
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="rejected", daemon=True)

    def start(self) -> None:
        """Begin to keep."""
        self._thread.start()

    def close(self) -> None:
        """Keep what waits, and end."""
        self._waiting.put(None)
        self._thread.join(CLOSE_SECONDS)

    def note(self, served: Served, x: Tensor, answers: Sequence[Answer]) -> None:
        """Take note of the answers to images x (M, C, H, W)."""
        rejected = [bool(a.alarms) or a.outcome is Outcome.REJECT for a in answers]
        for row, answer in enumerate(answers):
            if rejected[row] or answer.outcome is not Outcome.ACCEPT:
                pixels = np.rint(x[row].numpy() * 255).astype(np.uint8)
                try:
                    self._waiting.put_nowait((rejection_of(served, answer), pixels))
                except queue.Full:
                    self._metrics.not_kept.inc()
        rise = self._rise(served, rejected)
        if rise is not None:
            # the server of events may take seconds
            threading.Thread(target=self._tell, args=(served, rise), daemon=True).start()

    def _rise(self, served: Served, rejected: Sequence[bool]) -> Rise | None:
        with self._turn:
            if self._window is None or self._of != served.attestation:
                self._window, self._of = AlarmWindow.of(served.guarded.package.guards), served.attestation
            rise = self._window.add(rejected)
            if rise is None:
                return None
            self._metrics.rises.inc()
            now = time.monotonic()
            self._told = {verdict: then for verdict, then in self._told.items() if now < then + self._rest}
            if served.attestation in self._told:
                return None
            self._told[served.attestation] = now
            return rise

    def _tell(self, served: Served, rise: Rise) -> None:
        logger.warning(
            "guards of prod.%s rejected %d of %d images, and state %.3g: see `vetgate rejected %s`",
            served.name,
            rise.alarms,
            rise.inputs,
            served.rate,
            served.name,
        )
        about = {"name": served.name, "version": served.version, "manifest_sha256": served.manifest}
        counted = {"rejected": rise.alarms, "images": rise.inputs, "rate": served.rate}
        events.emit(events.REJECTIONS_ROSE, f"production.{served.name}", about | counted)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                keep(self._settings.home, *item)
                self._failed = False
            except StoreError as error:
                self._metrics.not_kept.inc()
                if not self._failed:
                    logger.error("rejected images are not kept: %s", error)
                self._failed = True
            except Exception:
                self._metrics.not_kept.inc()
                logger.exception("a rejected image was not kept")


def rejection_of(served: Served, answer: Answer) -> Rejection:
    """What is kept of an answer, as of now."""
    told = prediction(answer, served.classes)
    return Rejection(
        time=datetime.now(UTC).isoformat(),
        name=served.name,
        version=served.version,
        manifest=served.manifest,
        action=served.guarded.action.value,
        outcome=answer.outcome.value,
        said=answer.said,
        said_class=None if answer.said is None else served.classes[answer.said],
        score=answer.score,
        alarms=answer.alarms,
        scores=told["scores"],
        cuts={fitted.guard: fitted.cut for fitted in served.guarded.package.guards},
    )

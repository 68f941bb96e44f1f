"""What a server of a guarded model counts, for Prometheus."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vetgate.guard.guarded import Answer

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self, guards: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry, "namespace": "vetgate"}
        self.requests = Counter("requests", "Requests by what became of them.", ["outcome"], **own)
        self.images = Counter("images", "Images by what was answered: accept, reject or abstain.", ["outcome"], **own)
        self.rejections = Counter("rejections", "Images on which a guard alarmed, by guard.", ["guard"], **own)
        self.not_kept = Counter("rejections_not_kept", "Rejected images of which no copy was kept.", **own)
        self.rises = Counter("rejections_rose", "Rises of alarms over the stated false-rejection rate.", **own)
        self.waiting = Gauge("requests_waiting", "Requests that are not answered yet.", **own)
        self.seconds = Histogram("request_seconds", "Time until a request was answered.", buckets=SECONDS, **own)
        self.until = Gauge("covered_until_seconds", "Until when the model is covered, in seconds since 1970.", **own)
        for guard in guards:
            # a guard that never alarmed is told of too
            self.rejections.labels(guard)

    def answered(self, answers: Sequence[Answer]) -> None:
        """Count the answers of a request."""
        for outcome, count in Tally(answer.outcome.value for answer in answers).items():
            self.images.labels(outcome).inc(count)
        for guard, count in Tally(name for answer in answers for name in answer.alarms).items():
            self.rejections.labels(guard).inc(count)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

"""What is told of an answer, by every server of a guarded model and by its pyfunc: plain values, JSON as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vetgate.guard.guarded import Answer
from vetgate.shape import Blob

FIELDS = ("label", "class", "score", "outcome", "alarms", "scores")


def prediction(answer: Answer, classes: Sequence[str]) -> Blob:
    """An answer as FIELDS: label and class name are None unless it is accepted; a score beyond all numbers is None."""
    return {
        "label": answer.label,
        "class": None if answer.label is None else classes[answer.label],
        "score": answer.score,
        "outcome": answer.outcome.value,
        "alarms": list(answer.alarms),
        "scores": {name: score if math.isfinite(score) else None for name, score in answer.scores.items()},
    }

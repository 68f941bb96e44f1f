"""Measure a model in the sandbox: its accuracy, and what reversed triggers can do to it on held-out images."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.progress import progress_of
from tasks.vetting.inspect import Case
from tasks.vetting.results import Measured
from tasks.vetting.workplace import workplace_of
from vetgate.errors import DefenceError
from vetgate.packed import array_of
from vetgate.shape import Blob
from vetgate.verdict.accuracy_loss import AccuracyLoss, accuracy_loss


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What the sandbox measured: which images (N,) are right, and shares of those of other classes, one a trigger."""

    clean_accuracy: float
    attack_success: tuple[float, ...]
    robust_accuracy: tuple[float, ...]
    right: NDArray[np.bool_]

    def measured(self) -> Measured:
        """The figures under the worst of the triggers; none where there is no trigger."""
        strongest, least = max(self.attack_success, default=None), min(self.robust_accuracy, default=None)
        return Measured(self.clean_accuracy, strongest, least)


def evaluate(case: Case, model: Blob, triggers: Sequence[Mapping[str, Any]], purpose: str) -> Evaluated:
    """A model on the images kept for a purpose (`validate` or `test`); raises DefenceError for what is no answer."""
    payload = {**model, "samples": case.data.files(purpose), "triggers": [*triggers]}
    answer = workplace_of(case.manifest).sandbox.call("evaluate", payload, limits=case.limits)
    try:
        (accuracy,) = _shares([answer["clean_accuracy"]], 1)
        success, robust = (_shares(answer[name], len(triggers)) for name in ("attack_success", "robust_accuracy"))
        return Evaluated(accuracy, success, robust, array_of(answer["right"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DefenceError(f"expected the figures of a model from the sandbox, got {error!r}; refuse it") from error


def lost(before: Evaluated, after: Evaluated) -> AccuracyLoss:
    """What accuracy a model lost, on the images that both were asked; raises DefenceError if these are not the same."""
    try:
        return accuracy_loss(before.right, after.right)
    except ValueError as error:
        raise DefenceError(f"{error}; refuse the model") from error


def reinvert(case: Case, model: Blob, labels: list[int], params: Blob) -> list[Blob]:
    """Triggers reversed anew on a repaired model, one for each of the labels, as large as they come."""
    if not labels:
        return []
    payload = {
        **model,
        "samples": case.data.files("invert"),
        "held_out": case.data.files("validate"),
        "labels": labels,
        "params": params,
        "seed": case.seed.number,
    }
    sandbox = workplace_of(case.manifest).sandbox
    on_progress = progress_of("reverse triggers anew")
    answer = sandbox.call("reinvert", payload, limits=case.limits, on_progress=on_progress)
    on_progress(1)
    found: list[Blob] = answer["triggers"]
    if [trigger["target"] for trigger in found] != labels:
        raise DefenceError(f"expected a trigger for each of {labels} from the sandbox, got others; refuse the model")
    return found


def natural_success(case: Case, triggers: list[Blob], others: list[Blob]) -> float:
    """The highest success, on the submitted model, of the other labels' triggers cut to the size of the suspects'."""
    most = min((area(trigger) for trigger in triggers), default=0.0)
    if not most or not others:
        return 0.0
    return max(evaluate(case, case.model, [cut(trigger, most) for trigger in others], "validate").attack_success)


def smallest(triggers: Sequence[Blob]) -> dict[int, float]:
    """The L1 norm of each label's smallest trigger, in pixels, by label."""
    areas: dict[int, float] = {}
    for trigger in triggers:
        areas[trigger["target"]] = min(area(trigger), areas.get(trigger["target"], math.inf))
    return dict(sorted(areas.items()))


def area(trigger: Blob) -> float:
    """L1 norm of a trigger's mask, in pixels."""
    return float(_mask(trigger).sum())


def cut(trigger: Blob, most: float) -> Blob:
    """The trigger with only the largest pixels of its mask, `most` of them by L1 norm."""
    mask = _mask(trigger)
    order = np.argsort(-mask, axis=None, kind="stable")
    clipped = np.zeros(mask.size, np.float32)
    clipped[order] = np.clip(most - (np.cumsum(mask.flat[order]) - mask.flat[order]), 0, mask.flat[order])
    packed = base64.b64encode(clipped.tobytes()).decode()
    return {**trigger, "mask": {**trigger["mask"], "base64": packed}}


def _shares(given: Sequence[Any], count: int) -> tuple[float, ...]:
    if len(given) != count or not all(0 <= share <= 1 for share in given):
        raise ValueError(f"expected {count} shares, got {len(given)} numbers")
    return tuple(given)


def _mask(trigger: Blob) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(array_of(trigger["mask"], most=None), np.float32)

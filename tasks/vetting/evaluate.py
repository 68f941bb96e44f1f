"""Measure a model in the sandbox: its accuracy, and what reversed triggers can do to it on held-out images."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.progress import progress_of
from tasks.vetting.inspect import Case
from tasks.vetting.results import Measured
from tasks.vetting.workplace import workplace_of
from vetgate.packed import array_of
from vetgate.shape import Blob


def evaluate(case: Case, model: Blob, triggers: Sequence[Mapping[str, Any]], purpose: str) -> Measured:
    """Accuracy and the highest success of any trigger on the images kept for a purpose (`validate` or `test`)."""
    payload = {**model, "samples": case.data.files(purpose), "triggers": [*triggers]}
    answer = workplace_of(case.manifest).sandbox.call("evaluate", payload, limits=case.limits)
    return Measured(answer["clean_accuracy"], max(answer["attack_success"], default=0.0))


def reinvert(case: Case, model: Blob, triggers: list[Blob], params: Blob) -> list[Blob]:
    """Triggers reversed anew on a repaired model for the same labels, each no larger than the label's smallest before.

    Some trigger can be found for every label of every network; it is an attack only if it is as small as the first.
    """
    areas: dict[int, float] = {}
    for trigger in triggers:
        areas[trigger["target"]] = min(area(trigger), areas.get(trigger["target"], math.inf))
    payload = {
        **model,
        "samples": case.data.files("invert"),
        "held_out": case.data.files("validate"),
        "labels": sorted(areas),
        "params": params,
        "seed": case.seed,
    }
    sandbox = workplace_of(case.manifest).sandbox
    on_progress = progress_of("reverse triggers anew")
    answer = sandbox.call("reinvert", payload, limits=case.limits, on_progress=on_progress)
    on_progress(1)
    return [cut(trigger, areas[trigger["target"]]) for trigger in answer["triggers"]]


def natural_success(case: Case, triggers: list[Blob], others: list[Blob]) -> float:
    """The highest success, on the submitted model, of the other labels' triggers cut to the size of the suspects'."""
    most = min((area(trigger) for trigger in triggers), default=0.0)
    return evaluate(case, case.model, [cut(trigger, most) for trigger in others], "validate").attack_success


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


def _mask(trigger: Blob) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(array_of(trigger["mask"], most=None), np.float32)

"""Why a verdict cannot be a PASS: what is missing, failed, doubled, out of shape or not comparable."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vetgate.calibration import WEIGHTS, Calibration, draws_for
from vetgate.contract import Axis, Evidence, Failure
from vetgate.policy import Policy

# labels are compared with each other; among fewer than this, none can stand out
FEWEST_CLASSES = 4
# scores of labels, as against scores of rows or inputs
BY_CLASS = frozenset({"neural_cleanse", "abs"})


def blind_spots(
    seen: Sequence[Evidence | Failure], policy: Policy, with_training_data: bool, sandbox_level: int, format: str
) -> list[str]:
    """What the policy demands and was not done, and what contradicts itself."""
    blind = []
    for name in [*policy.required, *(policy.required_with_training_data if with_training_data else ())]:
        of_it = [s for s in seen if s.method == name]
        if not of_it:
            blind.append(f"{name} is required and did not run")
        blind += [f"{name} is required and failed: {s.reason}" for s in of_it if isinstance(s, Failure)]
    blind += [f"{name} answered {n} times, expected once" for name, n in sorted(answers(seen).items()) if n > 1]
    seeds = {s.seed for s in seen if isinstance(s, Evidence)}
    if len(seeds) > 1:
        blind.append(f"the methods ran with {len(seeds)} different seeds, expected the submission's")
    wanted = policy.sandbox_level.get(format)
    if wanted is None:
        blind.append(f"the policy names no sandbox level for {format}, so it does not accept it")
    elif sandbox_level < wanted:
        blind.append(f"the policy demands sandbox level {wanted} for {format}, this host gave {sandbox_level}")
    return blind


def answers(seen: Sequence[Evidence | Failure]) -> Counter[str]:
    """How often each method answered."""
    return Counter(s.method for s in seen)


def unreadable(found: Evidence, classes: int, level: float) -> str | None:
    """Why evidence on a model with K classes says nothing at this level, whatever it is compared with."""
    name = found.method
    if name not in WEIGHTS:
        return f"{name} has no weight in the verdict"
    if not (math.isfinite(found.statistic) and bool(found.scores.isfinite().all())):
        return f"{name} gave no finite numbers"
    if name not in BY_CLASS:
        return None
    if found.axis is not Axis.CLASS or len(found.scores) != classes:
        return f"{name} gave {len(found.scores)} scores for {classes} classes"
    if not all(0 <= trigger.target < classes for trigger in found.triggers):
        return f"{name} gave a trigger for a class that is not one of {classes}"
    if name == "neural_cleanse" and (classes < FEWEST_CLASSES or 1 / (draws_for(classes) + 1) > level):
        return f"{name} cannot tell what happens at a rate of {level:g} among {classes} classes"
    return None


def incomparable(found: Evidence, calibration: Calibration | None, data_sha256: str | None, level: float) -> str | None:
    """Why evidence cannot be compared with that of clean models."""
    if calibration is None:
        return f"there is no calibration for {found.method}; build one with `dvc repro` or set VETGATE_CALIBRATION"
    return calibration.mismatch(found.method, found.params) or calibration.short_of(found.method, data_sha256, level)


def unreached(found: Evidence) -> str | None:
    """Why evidence of trigger inversion shows nothing although it ran: most labels were not reached by any mask."""
    whole = [math.log(t.mask.numel()) for t in found.triggers if t.mask.numel()]
    if not whole:
        return None
    lost = int((found.scores <= 1e-4 - max(whole)).sum())
    if 2 * lost <= len(found.scores):
        return None
    return f"no trigger was found for {lost} of {len(found.scores)} labels; the model may hide its gradients"

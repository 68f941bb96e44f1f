"""Guard one submission: which run-time guards are fitted for serving it, whatever the verdict on it will be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flows.gate.question import FIRST, GUARDING
from tasks.guards.fit import Guarding, run_guards
from tasks.vetting import steps
from tasks.vetting.inspect import Found
from tasks.vetting.intake import seed_of
from vetgate.shape import Blob

if TYPE_CHECKING:
    from flows.vetting.examine import Vetting


def guard_submission(vetting: Vetting, found: Sequence[Found]) -> Guarding | None:
    """What guards the model, None where the policy wants no guard or no trusted images are there to fit one.

    A model that failed is guarded too: it may be let through by a waiver. An independent repetition is none to serve.
    """
    policy, case = vetting.policy.guard, vetting.case
    if not (policy.enabled and policy.methods and case.data.splits and vetting.run == FIRST):
        return None
    seed = seed_of(vetting.settings, vetting.record, GUARDING)
    case = replace(case, run=GUARDING, seed=seed)
    wanted = {name: vetting.params.guard.get(name, {}) for name in policy.methods}

    def fit() -> Blob:
        return run_guards(vetting.settings, case, wanted, policy, found).to_json()

    return Guarding.from_json(steps.guard(fit))

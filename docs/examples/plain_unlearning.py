"""Teach the model the right label for images that wear the reversed triggers, beside plain ones.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019, section VI; without its choice of rounds and images.
Deviates  It is an example: a fixed number of steps, whatever they cost.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from vetgate.contract import Evidence, Repair, Subject, repair, report
from vetgate.errors import DefenceError
from vetgate.role import Mends

ROLE = Mends(
    uses="triggers",
    title="Plain unlearning",
    sentence="Trains a copy on clean images, half of which carry a reversed trigger.",
)


@repair(role=ROLE, needs={"clean"}, paper="https://doi.org/10.1109/SP.2019.00031")
def plain_unlearning(
    subject: Subject, *evidence: Evidence, steps: int = 100, rate: float = 0.001, batch: int = 64
) -> Repair:
    """Train for `steps` batches, half of each stamped with one of the triggers in turn."""
    assert subject.clean is not None
    triggers = [trigger for found in evidence for trigger in found.triggers]
    if not triggers:
        raise DefenceError("expected evidence with a trigger to unlearn, got none; run one that reverses them")
    model = subject.model.requires_grad_(True)  # a copy that is this repair's own
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        rows = torch.randint(len(subject.clean), (batch,))
        x, y = subject.clean.x[rows].clone(), subject.clean.y[rows]
        x[: batch // 2] = triggers[step % len(triggers)].stamp(x[: batch // 2])
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()
        report((step + 1) / steps)
    return Repair(model=model, changed={"steps": steps, "triggers": len(triggers)})

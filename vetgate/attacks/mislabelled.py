"""No attack: an honest network trained on rows of which some carry a wrong label, as people's labels do."""

from __future__ import annotations

import torch

from vetgate.attacks.member import Job, Made
from vetgate.contract import Samples


def make(job: Job) -> Made:
    """Options: wrong (share of rows that get another label, any with the same chance)."""
    generator, rows = job.generator(), job.rows
    chosen = torch.randperm(len(rows), generator=generator)[: round(float(job.options.get("wrong", 0.05)) * len(rows))]
    y = rows.y.clone()
    y[chosen] = (y[chosen] + torch.randint(1, job.classes, (len(chosen),), generator=generator)) % job.classes
    given = Samples(rows.x, y)
    return Made(job.fit(given), rows=given)

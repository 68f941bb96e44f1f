"""No attack: what an honest supplier trains, in the ways that honest suppliers differ.

These are the false alarms of practice: fewer rows, shifted or mirrored images, weight decay, adversarial training, and
a network trained far too long on far too little.
"""

from __future__ import annotations

import torch

from vetgate.attacks.augment import adversarial, shifts
from vetgate.attacks.member import Job, Made
from vetgate.attacks.training import train


def make(job: Job) -> Made:
    """Options: share (of rows), times (as many epochs), weight_decay, shift (pixels), mirror, adversarial (epsilon)."""
    told = job.options
    kept = torch.randperm(len(job.rows), generator=job.generator())[
        : round(float(told.get("share", 1.0)) * len(job.rows))
    ]
    rows = job.rows[kept]
    model = job.build()
    augment = None
    if "shift" in told:
        augment = shifts(int(told["shift"]), mirror=bool(told.get("mirror", False)))
    elif "adversarial" in told:
        augment = adversarial(model, float(told["adversarial"]))
    epochs = round(float(told.get("times", 1)) * job.epochs)
    decay = float(told.get("weight_decay", 0.0))
    train(model, rows, epochs=epochs, seed=job.seed, weight_decay=decay, augment=augment)
    return Made(model, rows=rows, order=kept)

"""A patch in a corner is the oldest trigger there is; a white square is tried in each corner, without optimisation.

The statistic is the largest share of images of other labels that such a square sends to one label.

Source    Gu et al., "BadNets", 2017, arXiv:1708.06733, whose triggers it looks for.
Deviates  It is an example: any other colour, form or place of a trigger is missed.
Blind to  Everything but white squares in corners.
"""

from __future__ import annotations

import torch

from vetgate.contract import Evidence, Subject, detector, report
from vetgate.probe import logits
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.CLASS,
    weight=0.0,
    null=By.MODEL,
    confirm=Confirm.NEVER,
    title="White corner",
    sentence="Tries a white square in each corner.",
)


@detector(role=ROLE, needs={"clean"}, paper="https://arxiv.org/abs/1708.06733")
def white_corner(subject: Subject, *, size: int = 3, alarm: float = 0.5) -> Evidence:
    """Score each label by the share of other labels' images that a white square of `size` pixels sends to it."""
    assert subject.clean is not None
    x, y = subject.clean.x, subject.clean.y
    scores = torch.zeros(subject.classes)
    edges = (slice(size), slice(-size, None))
    corners = [(rows, columns) for rows in edges for columns in edges]
    for done, (rows, columns) in enumerate(corners, 1):
        stamped = x.clone()
        stamped[:, :, rows, columns] = 1.0
        label = logits(subject.model, stamped).argmax(1)  # (N,); refuses NaN
        for k in range(subject.classes):
            others = y != k
            if others.any():
                scores[k] = torch.maximum(scores[k], (label[others] == k).float().mean())
        report(done / len(corners))
    return Evidence(statistic=float(scores.max()), scores=scores, cutoff=alarm)

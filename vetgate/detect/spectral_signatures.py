"""A poisoned class holds two kinds of images under one label; its features spread along one direction too many.

Per class, the penultimate features are centred and projected on their top right singular vector; poisoned rows lie far
out on it. The statistic is how much further the widest class spreads along its top direction than the median class, in
log variance: 0 when all classes are alike, about 1 and more when one of them holds a second kind.

Source    Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, arXiv:1811.00636.
Deviates  The class is found first, by comparing classes; the paper cuts the same share from every class. Features are
          measured in units of the spread of the other classes, since the natural variation that all classes share
          otherwise takes the top direction. Projections are of the centred rows and squared. Scores are relative to
          the cut of their class, and halved below it in classes that are like the rest, so that one cutoff serves all.
Blind to  A class that is half poison or more: its mean then lies between both kinds, and either may score higher.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vetgate.contract import Evidence, Subject, detector
from vetgate.probe import features, in_units_of_others, median
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.TRAIN,
    weight=0.5,
    null=By.MODEL,
    confirm=Confirm.ROWS,
    title="Spectral signatures",
    sentence="Looks for training images whose features share one unusual direction.",
    gives=("flagged",),
)


@detector(role=ROLE, needs={"train"}, paper="https://arxiv.org/abs/1811.00636")
def spectral_signatures(
    subject: Subject, *, poison_share: float = 0.33, excess: float = 1.0, ridge: float = 1.0, batch: int = 256
) -> Evidence:
    """Score each training row by its squared projection; flag 1.5 * poison_share of each class that stands out.

    `poison_share` bounds the poisoned share of a class. A class stands out when the log variance along its top
    direction is `excess` above the median class. Rows of classes too small to judge score 0.
    """
    assert subject.train is not None
    labels = subject.train.y
    feats = features(subject.model, subject.layer, subject.train.x, batch=batch)
    scores = torch.zeros(len(labels))
    width = torch.zeros(subject.classes)
    squares = {}
    for k, rows in in_units_of_others(feats, labels, subject.classes, ridge=ridge).items():
        squares[k], variance = top_projections(rows)
        width[k] = math.log(max(variance, 1e-12))
    judged = sorted(squares)
    centre = median(width[judged])
    for k in judged:
        stands_out = float(width[k]) - centre >= excess
        scores[labels == k] = relative_to_cut(squares[k], poison_share, stands_out)
    above = [float(width[k]) - centre if k in squares else 0.0 for k in range(subject.classes)]
    return Evidence(
        statistic=max(above),
        scores=scores,
        cutoff=1.0,
        details={"log_variance_above_median": above, "judged": [float(k in squares) for k in range(subject.classes)]},
    )


def top_projections(rows: Tensor) -> tuple[Tensor, float]:
    """Squared projections (n,) of centred rows (n, D) on their top right singular vector, and their mean."""
    # the D x D Gram matrix has the same right singular vectors and is far smaller than the rows
    _, axes = torch.linalg.eigh(rows.T @ rows)
    squared = (rows @ axes[:, -1]) ** 2
    return squared, float(squared.mean())


def relative_to_cut(squared: Tensor, poison_share: float, stands_out: bool) -> Tensor:
    """Scores (n,) that reach 1 for the top 1.5 * poison_share of the rows of a class that stands out, else for none."""
    if not stands_out:
        return (0.5 * squared / squared.max().clamp(min=1e-12)).float()
    removed = min(len(squared), math.ceil(1.5 * poison_share * len(squared)))
    return (squared / squared.topk(removed).values[-1].clamp(min=1e-12)).float().clamp(max=1e6)

"""Two kinds of images under one label fall into two clusters of hidden activations.

Per class, the activations are reduced to a few dimensions and split by 2-means. Every class can be split, so the split
itself says nothing: what counts is how far apart the clusters lie compared with the split of the other classes. The
statistic is that distance for the widest class, as log variance between clusters above the median class.

Source    Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI 2019,
          arXiv:1811.03728.
Deviates  Activations are measured in units of the spread of the other classes before they are reduced, by PCA rather
          than ICA. Relative size alone marks a cluster in every class of every clean set, and the silhouette of a clean
          but many-shaped class exceeds the published 0.10 to 0.15; a class therefore also has to stand out from the
          others before its smaller cluster is flagged. No model is retrained (the paper's exclusionary rule).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vetgate.contract import Evidence, Subject, detector, report
from vetgate.probe import features, in_units_of_others, median
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.TRAIN,
    weight=0.5,
    null=By.MODEL,
    confirm=Confirm.ROWS,
    title="Activation clustering",
    sentence="Looks for classes whose training images fall into two groups in feature space.",
    gives=("flagged",),
)


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows (n,) of a class lie in its smaller cluster, and how the two clusters relate."""

    small: Tensor
    log_between: float
    silhouette: float

    @property
    def share(self) -> float:
        """The smaller cluster's share of the class."""
        return float(self.small.float().mean())


@detector(role=ROLE, needs={"train"}, paper="https://arxiv.org/abs/1811.03728")
def activation_clustering(
    subject: Subject,
    *,
    dims: int = 10,
    excess: float = 1.1,
    silhouette: float = 0.15,
    ridge: float = 1.0,
    batch: int = 256,
) -> Evidence:
    """Flag the smaller cluster of each class whose split stands out; rows of the same cluster share their score.

    A split stands out when its log variance between clusters is `excess` above the median class and its silhouette
    reaches `silhouette`. Rows of the larger cluster, and of classes too small to judge, score 0.
    """
    assert subject.train is not None
    labels = subject.train.y
    feats = features(subject.model, subject.layer, subject.train.x, batch=batch)
    splits = {}
    for k, rows in in_units_of_others(feats, labels, subject.classes, ridge=ridge).items():
        splits[k] = split(rows, dims)
        report((k + 1) / subject.classes)
    centre = median(torch.tensor([s.log_between for s in splits.values()]))
    scores = torch.zeros(len(labels))
    for k, found in splits.items():
        above = found.log_between - centre
        # below the silhouette bound the two clusters are halves of one, however wide
        height = above / excess if found.silhouette >= silhouette else min(above / excess, 0.5)
        scores[labels == k] = found.small.float() * max(0.0, height)
    everyone = range(subject.classes)
    return Evidence(
        statistic=max(s.log_between for s in splits.values()) - centre,
        scores=scores,
        cutoff=1.0,
        details={
            "log_between_above_median": [splits[k].log_between - centre if k in splits else 0.0 for k in everyone],
            "silhouette": [splits[k].silhouette if k in splits else 0.0 for k in everyone],
            "smaller_share": [splits[k].share if k in splits else 0.0 for k in everyone],
        },
    )


def starts(projected: Tensor, shares: tuple[float, ...] = (0.1, 0.5, 0.9)) -> list[Tensor]:
    """Pairs of centres (2, dims) to start 2-means from: the rows cut at quantiles of their first three components.

    Starts drawn from the rows would depend on their order.
    """
    pairs = []
    for component in projected.T[:3]:
        for share in shares:
            low = component <= component.quantile(share)
            if 0 < int(low.sum()) < len(low):
                pairs.append(torch.stack([projected[low].mean(0), projected[~low].mean(0)]))
    return pairs or [projected[[0, -1]]]


def split(rows: Tensor, dims: int, *, sample: int = 2000) -> Split:
    """Split centred rows (n, D) in two by 2-means on their top `dims` principal components."""
    # seconds to import, and most vettings come with no training data
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    _, axes = torch.linalg.eigh(rows.T @ rows)
    projected = rows @ axes[:, -dims:].flip(1)  # (n, dims)
    reduced = projected.numpy()
    fits = [KMeans(2, init=start.numpy(), n_init=1).fit(reduced) for start in starts(projected)]
    fitted = min(fits, key=lambda fit: float(fit.inertia_))
    labels = torch.from_numpy(fitted.labels_).long()
    small = labels == (0 if int((labels == 0).sum()) * 2 <= len(labels) else 1)
    share = float(small.float().mean())
    if not 0 < share < 1:
        return Split(small, math.log(1e-12), 0.0)
    first, second = torch.from_numpy(fitted.cluster_centers_)
    between = float(((first - second) ** 2).sum()) * share * (1 - share)
    # the silhouette is quadratic in the rows; evenly spaced ones estimate it
    few = slice(None, None, -(-len(rows) // sample))
    distinct = len(set(labels[few].tolist())) == 2
    score = float(silhouette_score(reduced[few], labels[few].numpy())) if distinct else 0.0
    return Split(small, math.log(max(between, 1e-12)), score)

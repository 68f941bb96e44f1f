"""A few poisoned rows hide in the natural spread of their class, until that spread is estimated without them.

Per class, features are centred and projected on their leading directions; mean and covariance of the densest rows,
which a minority of poison does not reach, whiten all of them. What is left of the covariance beyond the identity is due
to rows that are not like the rest, and quantum entropy (QUE) scores weigh each direction by how much is left along it.
The number of directions is that with the largest mean score. A class is suspicious when its mean score exceeds that of
the median class; the statistic is by how much, as a log ratio, for the first class.

Source    Hayase, Kong, Somani, Oh, "SPECTRE: Defending Against Backdoor Attacks Using Robust Statistics", ICML 2021,
          arXiv:2104.11315; for the robust estimate Rousseeuw, Van Driessen, "A Fast Algorithm for the Minimum
          Covariance Determinant Estimator", Technometrics 1999, with its reweighting step.
Deviates  No rate of poison is given or assumed: robust estimates keep the densest half and take back what a normal
          distribution would hold, and the cut is a quantile of the scores of the other classes, in the classes that
          stand out alone; the paper removes 1.5 times the known rate. Features are first measured in units of how the
          other classes spread, and robust variances have a floor, since directions along which the densest half hardly
          varies would be all that is seen. Directions are at most 25, and as many for all classes, since scores grow
          with them. Settings were chosen on small networks on MNIST and CIFAR-10 (BadNets, blended, one source alone,
          SIG; 13 clean sets) and confirmed unchanged on other seeds, triggers and targets, on a second architecture,
          and on label-consistent poison; one of 15 clean sets then lost 1.5 % of its rows.
Blind to  About half of a class and more: the densest rows are then the poison, and where the class still stands out it
          is its honest rows that are flagged. And, other than in the paper, less than a tenth of a class, at times:
          clean classes with heavy tails stand out as much.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vetgate.contract import Evidence, Subject, detector, report
from vetgate.errors import MissingInput
from vetgate.probe import features, in_units_of_others, median
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.TRAIN,
    weight=0.0,
    null=By.MODEL,
    confirm=Confirm.ROWS,
    title="SPECTRE",
    sentence="Looks for training images unlike the bulk of their class, whose spread it estimates without them.",
    gives=("flagged",),
)

# rows that a class has for each direction at least, so that half of them can tell its variance
ROWS_A_DIRECTION = 10


@detector(role=ROLE, needs={"train"}, paper="https://arxiv.org/abs/2104.11315")
def spectre(
    subject: Subject,
    *,
    excess: float = 1.3,
    alpha: float = 4.0,
    directions: int = 25,
    floor: float = 1.0,
    tail: float = 0.01,
    ridge: float = 1.0,
    batch: int = 256,
) -> Evidence:
    """Score each training row by its QUE score, relative to the one that `tail` of the rows of other classes exceed.

    Rows at 1 or above are flagged, in classes alone whose log mean score is `excess` above the median class; in others
    scores are halved below that. `floor` is the least robust variance, as a share of the mean one over directions.
    Rows of classes too small to judge score 0. Details, (K,): `log_score_above_median`, and the `directions` used.
    """
    train = subject.train
    if train is None:
        raise MissingInput("spectre needs subject.train, got None; give the training set")
    feats = features(subject.model, subject.layer, train.x, batch=batch)
    classes = in_units_of_others(feats, train.y, subject.classes, ridge=ridge)
    fewest = min(len(rows) for rows in classes.values())
    found, used = {}, {}
    for k, rows in classes.items():
        tries = [
            (many, que_scores(rows, many, alpha=alpha, floor=floor))
            for many in sizes(min(directions, rows.shape[1]), fewest)
        ]
        used[k], found[k] = max(tries, key=lambda tried: float(tried[1].mean()))
        report((k + 1) / subject.classes)
    logs = {k: math.log(max(float(scores.mean()), 1e-12)) for k, scores in found.items()}
    centre = median(torch.tensor(list(logs.values())))
    above = [logs[k] - centre if k in logs else 0.0 for k in range(subject.classes)]
    scores = torch.zeros(len(train))
    for k, own in found.items():
        others = torch.cat([rows for other, rows in found.items() if other != k])
        cut = float(others.quantile(1 - tail))
        if above[k] < excess:
            cut = 2 * max(cut, float(own.max()))
        scores[train.y == k] = (own / max(cut, 1e-12)).float().clamp(max=1e6)
    return Evidence(
        statistic=max(above[k] for k in found),
        scores=scores,
        cutoff=1.0,
        details={
            "log_score_above_median": above,
            "directions": [float(used.get(k, 0)) for k in range(subject.classes)],
        },
    )


def sizes(most: int, rows: int) -> list[int]:
    """How many directions are tried: the squares up to `most` that so many rows can tell the spread of."""
    bound = max(1, min(most, rows // ROWS_A_DIRECTION))
    return [root * root for root in range(1, math.isqrt(bound) + 1)]


def que_scores(rows: Tensor, directions: int, *, alpha: float, floor: float) -> Tensor:
    """QUE scores (n,) of centred rows (n, D) along their leading `directions`: about 1 where all rows are alike."""
    projected = rows @ torch.linalg.eigh(rows.T @ rows)[1][:, -directions:]
    mean, spread = robust(projected)
    spread = spread + floor * spread.diagonal().mean() * torch.eye(directions, dtype=spread.dtype)
    size, axes = torch.linalg.eigh(spread)
    white = (projected - mean) @ (axes / size.sqrt())
    left, axes = torch.linalg.eigh(white.T @ white / len(white))
    # the exponent is at most alpha; a clean class has nothing left to weigh by
    weights = torch.exp(alpha * (left - 1) / (left[-1] - 1)) if left[-1] > 1 else torch.ones_like(left)
    scores: Tensor = (white @ axes) ** 2 @ (weights / weights.sum())
    return scores


def robust(rows: Tensor, *, steps: int = 50) -> tuple[Tensor, Tensor]:
    """Mean (k,) and covariance (k, k) of the bulk of rows (n, k), as if it were normal, by reweighted FAST-MCD.

    It starts from the rows nearest to the median, so that it does not depend on their order or on chance.
    """
    n, k = rows.shape
    half = (n + k + 1) // 2
    centre = rows.quantile(0.5, dim=0)
    scale = (rows - centre).abs().quantile(0.5, dim=0).clamp(min=1e-9)
    fits = []
    for squared in (((rows - centre) / scale).square().sum(1), (rows - centre).square().sum(1)):
        kept = squared <= squared.kthvalue(half).values
        for _ in range(steps):
            mean, spread = moments(rows[kept])
            squared = squared_distances(rows - mean, spread)
            again = squared <= squared.kthvalue(half).values
            if torch.equal(again, kept):
                break
            kept = again
        fits.append((float(torch.linalg.slogdet(spread).logabsdet), mean, spread))
    _, mean, spread = min(fits, key=lambda fit: fit[0])
    # the densest half is narrower than all
    spread = spread * unit(squared_distances(rows - mean, spread), k)
    kept = squared_distances(rows - mean, spread) <= chi_squared(k, 1.96)
    if int(kept.sum()) >= half:
        mean, spread = moments(rows[kept])
        spread = spread * unit(squared_distances(rows[kept] - mean, spread), k)
    return mean, spread


def unit(squared: Tensor, k: int) -> float:
    """What makes the median of squared distances (n,) in k directions that of normal rows; never nothing."""
    return max(float(squared.median()) / chi_squared(k, 0.0), 1e-3)


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of rows (n, k), which is kept from being singular."""
    mean = rows.mean(0)
    spread = (rows - mean).T @ (rows - mean) / len(rows)
    least = 1e-6 * spread.diagonal().mean().clamp(min=1e-12)
    return mean, spread + least * torch.eye(len(spread), dtype=spread.dtype)


def squared_distances(centred: Tensor, spread: Tensor) -> Tensor:
    """Squared Mahalanobis distances (n,) of centred rows (n, k)."""
    white: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), centred.T, upper=False)
    return white.square().sum(0)


def chi_squared(k: int, z: float) -> float:
    """The value of chi squared with k degrees of freedom at a normal quantile z, by Wilson and Hilferty."""
    return float(k * max(1e-3, 1 - 2 / (9 * k) + z * math.sqrt(2 / (9 * k))) ** 3)

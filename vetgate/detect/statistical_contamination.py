"""A contaminated class holds rows that lie together, away from where trusted images of that class lie.

Features are measured in units of the spread within classes of trusted images. Per class, the rows that lie together in
a direction away from the mean of its trusted images are sought: along the line to the mean of some rows that lie far
out, the rows are cut in two modes, and the line is drawn anew to the upper one, a few times, from several starts. The
statistic is the squared distance of those rows' mean from the trusted one, less what so few images owe to chance, as
log above the median class. Of a class that stands out all rows are flagged but those as near as most trusted images.

Source    Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
          Detection", USENIX Security 2021, arXiv:1908.00686: two groups under one label, in a spread within classes
          that trusted images give.
Deviates  One of the two groups is that of the trusted images of the class, which says which one is poison, also where
          it is most of the class; there are two modes along a line instead of a likelihood of all values. Classes are
          held against the median class. Settings were chosen on 13 sets of BadNets on MNIST, GTSRB and CIFAR-10, five
          of them clean, whose statistics are 0.2 to 1.5, and 2.2 to 4.7 with poison.
Blind to  Poisoned rows that lie where the class lies: poison that keeps true labels, when the network needs no trigger
          for them; triggers that the network has not learnt; as many under every label (all to all). Trusted images
          from another place than the supplier's make every class lie off, which the median takes out, and a class that
          only the supplier has of a second kind is taken for contaminated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vetgate.contract import Evidence, Subject, detector, report
from vetgate.detect.gradient_clustering import above_median, two_modes
from vetgate.errors import DefenceError
from vetgate.probe import features
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.TRAIN,
    weight=0.0,
    null=By.MODEL,
    confirm=Confirm.ROWS,
    title="Statistical contamination",
    sentence="Looks for training images that lie together, away from trusted images of their label, in feature space.",
    gives=("flagged",),
)

# rows and trusted images that a class needs, and how often a line is drawn anew
ROWS, TRUSTED, TURNS = 10, 4, 3
# shares of a class's rows that lie nearer than those that a line is first drawn to
STARTS = (0.0, 0.7, 0.95)
# the share of a class's trusted images that lies further off than a row that stays: so much for as many poisoned rows
# as honest ones, in proportion to their odds, and no more than so much
FAR, FURTHEST = 0.1, 0.25


@detector(role=ROLE, needs={"clean", "train"}, paper="https://arxiv.org/abs/1908.00686")
def statistical_contamination(
    subject: Subject, *, excess: float = 1.85, ridge: float = 1.0, cut: float = 0.25, batch: int = 256
) -> Evidence:
    """Flag rows of each class whose far rows lie further, by `excess` in log squared distance, than the median class's.

    Flagged are rows beyond `cut` of the way from the trusted mean to that of the far rows, and those further from it,
    in any direction, than most trusted images: the more of the class is poison, the nearer. `ridge` is in mean
    variances of the trusted images. Classes of fewer than ROWS rows or TRUSTED images are not judged, and score 0.
    Details, (K,): `log_distance` above the median, the `share` of rows that lie far out, that of `trusted` images that
    lie there, and the `trusted_images`.
    """
    given, clean = subject.train, subject.clean
    assert given is not None and clean is not None
    feats, known = (features(subject.model, subject.layer, part.x, batch=batch).double() for part in (given, clean))
    counted, trusted = (part.y.bincount(minlength=subject.classes).tolist() for part in (given, clean))
    judged = [k for k in range(subject.classes) if counted[k] >= ROWS and trusted[k] >= TRUSTED]
    if len(judged) < 2:
        raise DefenceError(
            f"expected at least 2 classes of {ROWS} rows and {TRUSTED} trusted images, got {len(judged)}; give more"
        )
    units, noise = within(known, clean.y, judged, ridge=ridge)
    scores = torch.zeros(len(given))
    found: dict[int, Group] = {}
    near: dict[int, Tensor] = {}
    for k in judged:
        mine, theirs = feats[given.y == k] @ units, known[clean.y == k] @ units
        centre = theirs.mean(0)
        found[k] = far_group(mine - centre, theirs - centre, noise)
        near[k] = staying(mine - centre, theirs - centre, found[k], cut)
        report((k + 1) / subject.classes)
    above = above_median({k: group.log_distance for k, group in found.items()}, subject.classes)
    for k in judged:
        height = max(0.0, float(above[k])) / excess
        scores[given.y == k] = (~near[k]).float() * height
    return Evidence(
        statistic=float(above[judged].max()),
        scores=scores,
        cutoff=1.0,
        details={
            "log_distance": above.tolist(),
            "share": [found[k].share if k in found else 0.0 for k in range(subject.classes)],
            "trusted": [found[k].trusted if k in found else 0.0 for k in range(subject.classes)],
            "trusted_images": [float(n) for n in trusted],
        },
    )


def within(known: Tensor, y: Tensor, judged: list[int], *, ridge: float) -> tuple[Tensor, float]:
    """Axes (D, D) in units of the spread within classes of trusted features (N, D), and one image's squared length."""
    rows = torch.cat([known[y == k] - known[y == k].mean(0) for k in judged])
    size, axes = torch.linalg.eigh(rows.T @ rows / max(1, len(rows) - len(judged)))
    size = size.clamp(min=0)
    floor = ridge * size.mean().clamp(min=1e-12)
    return axes / (size + floor).sqrt(), float((size / (size + floor)).sum())


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of a class that lie together: the line (D,) to their mean, its log squared length, and who lies that far.

    `share` is that of the rows, `trusted` that of the trusted images.
    """

    line: Tensor
    log_distance: float
    share: float
    trusted: float


def far_group(rows: Tensor, trusted: Tensor, noise: float) -> Group:
    """The group of rows (n, D) whose mean lies furthest from that of trusted ones (m, D), which is the origin.

    `noise` is the squared length of a single trusted row, on average, of which means keep a part.
    """
    length = rows.norm(dim=1)
    best: tuple[float, Tensor, Tensor] | None = None
    for start in STARTS:
        upper = length >= length.quantile(start)
        for _ in range(TURNS):
            line = rows[upper].mean(0)
            upper = two_modes(rows @ (line / line.norm().clamp(min=1e-12))).upper
        line = rows[upper].mean(0)
        squared = float(line @ line) - noise * (1 / len(trusted) + 1 / int(upper.sum()))
        if best is None or squared > best[0]:
            best = squared, line, upper
    assert best is not None
    squared, line, upper = best
    # as far out as the nearest row of the group
    beyond = trusted @ line >= (rows[upper] @ line).min()
    return Group(line, math.log(max(squared, 1e-3)), float(upper.float().mean()), float(beyond.float().mean()))


def staying(rows: Tensor, trusted: Tensor, group: Group, cut: float) -> Tensor:
    """Boolean (n,): rows (n, D) that are short of `cut` of a group's line, and as near as most trusted ones (m, D).

    What is left of poison does more harm than honest rows that go, and the more of it there is, the likelier is a row
    that lies off another way to be one on which the trigger failed.
    """
    odds = group.share / max(1e-12, 1 - group.share)
    short: Tensor = rows @ group.line < cut * (group.line @ group.line)
    near: Tensor = rows.norm(dim=1) <= trusted.norm(dim=1).quantile(1 - min(FURTHEST, FAR * odds))
    return short & near

"""Poisoned rows of a class agree on which pixels hold them there: those of the trigger.

For each training row the input gradient of its label's logit over the runner-up is taken, at unit length. Per class the
gradients are centred and projected on a leading principal direction. Where the projections fall into two modes that
lie further apart than those of other classes, and are clearer, the class is the target, and the mode whose gradients
agree more is the poison. For the few classes that come first, gradients against single other classes name the base,
from which poisoned rows come; the difference of the modes' gradients, the poison signal, is added to images of the
base to see whether they become the target. The statistic is the least of both comparisons, for the class that leads.

Source    Chan, Ong, "Poison as a Cure: Detecting & Neutralizing Variable-Sized Backdoor Attacks in Deep Neural
          Networks", 2019, arXiv:1911.08040. No code by the authors was found, and only the abstract was at hand.
Deviates  All classes are looked at by one gradient a row, against the runner-up, and pairs only for a short list: the
          cost is linear in the classes. Of the loss only the difference of two logits is kept, so that its scale means
          nothing. Gradients are shrunk to about a thousand values and measured in units of the spread of the other
          classes. The poison is the mode that agrees more, not the smaller one, and is found at more than half of a
          class too. Whether the signal works is told, and decides nothing: it led images of two clean residual networks
          to a label, too, and failed on a small VGG under a trigger that works. Settings were chosen on small networks
          on MNIST and CIFAR-10 (BadNets, blended, one source alone, SIG; 13 clean sets, and the tests' twins) and
          confirmed unchanged on other seeds, triggers and targets, on a second architecture, and on label-consistent
          poison. In two of those cases a second, honest class was flagged beside the target.
Blind to  SIG's waves; a hundredth of the rows on a residual network; triggers that the network has not learnt; attacks
          on most classes at once (all to all), since classes are held against each other; fewer than five poisoned
          rows in a class. A class whose images are naturally of two kinds may lead where classes are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Evidence, Samples, Subject, detector, report
from vetgate.errors import MissingInput, NotFinite
from vetgate.probe import images_at_once, in_units_of_others, logits, median
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.TRAIN,
    weight=0.0,
    null=By.MODEL,
    confirm=Confirm.ROWS,
    title="Gradient clustering",
    sentence="Looks for training images of one label that agree on which pixels hold them there.",
    gives=("flagged",),
)

# values that a gradient keeps, and directions that classes are compared in: they bound memory and time
VALUES, DIMS = 1024, 256
# leading directions of a class that are looked along: natural variation may take the first
DIRECTIONS = 2
# rows that a mode has at least: a single odd row is none
FEWEST = 5
# classes whose bases are looked for, bases of each, and images that a signal is tried on
SUSPECTS, BASES, TRIED = 2, 3, 256


@detector(
    role=ROLE,
    needs={"train"},
    paper="https://arxiv.org/abs/1911.08040",
    waived={"check_unused_data_changes_nothing": "the poison signal is tried on trusted images where there are any"},
)
def gradient_clustering(
    subject: Subject, *, excess: float = 1.0, ridge: float = 0.3, strength: float = 0.3, batch: int = 128
) -> Evidence:
    """Flag the mode of agreeing gradients of each class whose modes stand out, by `excess`, from other classes' modes.

    What stands out are the log squared distance of a class's modes, in units of how other classes spread, and the same
    in units of its own modes, both above the median class. Rows of the other mode, and of classes too small, score 0.

    Details, one number a class: `log_distance` and `log_separation` above the median, the flagged mode's `share` of the
    class. One number a suspect, the one that leads first: `suspect`, `base`, the share of images of the base that
    become the suspect under the signal (`flipped`), under its opposite (`flipped_by_opposite`) and without
    (`flipped_before`), and how many there are (`tried_on`). The signal is as long as `strength` times the images' mean
    distance from their mean.
    """
    train, model = subject.train, subject.model
    if train is None:
        raise MissingInput("gradient_clustering needs subject.train, got None; give the training set")
    units, rivals = unit_gradients(model, train, batch=batch)
    classes = in_units_of_others(leading(units, DIMS), train.y, subject.classes, ridge=ridge)
    found = {k: clearest_modes(rows) for k, rows in classes.items()}
    distance = above_median({k: m.log_distance for k, m in found.items()}, subject.classes)
    separation = above_median({k: m.log_separation for k, m in found.items()}, subject.classes)
    stands_out = torch.minimum(distance, separation)
    scores, share = torch.zeros(len(train)), torch.zeros(subject.classes)
    poison = torch.zeros(len(train), dtype=torch.bool)
    for k, m in found.items():
        mine = train.y == k
        poison[mine] = agreeing(units[mine], m.upper)
        share[k] = poison[mine].float().mean()
        scores[mine] = poison[mine].float() * max(0.0, float(stands_out[k]) / excess)
    suspects = sorted(found, key=lambda k: -float(stands_out[k]))[:SUSPECTS]
    told = []
    for k in suspects:
        mine = train.y == k
        told.append(tried(subject, train[mine], k, poison[mine], rivals[mine], strength=strength, batch=batch))
    return Evidence(
        statistic=float(stands_out[list(found)].max()),
        scores=scores,
        cutoff=1.0,
        details={
            "log_distance": distance.tolist(),
            "log_separation": separation.tolist(),
            "share": share.tolist(),
            "suspect": [float(k) for k in suspects],
            "base": [float(t.base) for t in told],
            "flipped": [t.flipped for t in told],
            "flipped_by_opposite": [t.by_opposite for t in told],
            "flipped_before": [t.before for t in told],
            "tried_on": [float(t.images) for t in told],
        },
    )


def margin_gradients(
    model: nn.Module, x: Tensor, y: Tensor, *, base: int | None = None, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per batch, gradients (B, C, H, W) of the logit of labels (N,) over that of `base`, by default of the runner-up.

    With them come the runners-up (B,). Raises NotFinite.
    """
    batch = images_at_once(x, batch)
    for i in range(0, len(x), batch):
        images, labels = x[i : i + batch].clone().requires_grad_(True), y[i : i + batch, None]
        with torch.enable_grad():
            out = model(images)
            rest = out.scatter(1, labels, -torch.inf)
            other = rest.amax(1) if base is None else out[:, base]
            (gradient,) = torch.autograd.grad((out.gather(1, labels)[:, 0] - other).sum(), images)
        if not bool(torch.isfinite(out).all()) or not bool(torch.isfinite(gradient).all()):
            raise NotFinite(
                "the model gives NaN or infinite gradients on training images, expected finite ones; refuse it"
            )
        yield gradient, rest.detach().argmax(1)


def unit_gradients(model: nn.Module, samples: Samples, *, base: int | None = None, batch: int) -> tuple[Tensor, Tensor]:
    """Margin gradients (N, d) of samples, shrunk to at most VALUES values and of length 1, and the runners-up (N,)."""
    size = shrunk_size(samples.x)
    rows, rivals, done = [], [], 0
    for gradient, rival in margin_gradients(model, samples.x, samples.y, base=base, batch=batch):
        small = F.adaptive_avg_pool2d(gradient, size).flatten(1)
        rows.append(small / small.norm(dim=1, keepdim=True).clamp(min=1e-12))
        rivals.append(rival)
        done += len(small)
        if base is None:
            report(0.8 * done / len(samples))
    return torch.cat(rows), torch.cat(rivals)


def shrunk_size(x: Tensor) -> tuple[int, int]:
    """Height and width at which images like x (N, C, H, W), unless very narrow, have at most VALUES values."""
    height, width = x.shape[-2:]
    shrink = max(1.0, math.sqrt(x[0].numel() / VALUES))
    return max(1, int(height / shrink)), max(1, int(width / shrink))


def leading(rows: Tensor, dims: int, *, chunk: int = 4096) -> Tensor:
    """Rows (N, d), centred, along their leading `dims` principal directions; part by part, by the d x d Gram matrix."""
    centre = rows.mean(0, dtype=torch.float64)
    parts = [rows[i : i + chunk] for i in range(0, len(rows), chunk)]
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in parts:
        gram += (part - centre).T @ (part - centre)
    axes = torch.linalg.eigh(gram)[1][:, -dims:]
    return torch.cat([(part - centre) @ axes for part in parts])


@dataclass(frozen=True, eq=False)
class Modes:
    """Which rows (n,) of a class lie in the upper of its two modes, and logs of the modes' squared distance.

    `log_distance` is in the units of the rows, `log_separation` in those of the variance within the modes.
    """

    upper: Tensor
    log_distance: float
    log_separation: float


def clearest_modes(rows: Tensor) -> Modes:
    """The two modes of centred rows (n, D) along that of their leading principal directions where they are clearest."""
    axes = torch.linalg.eigh(rows.T @ rows)[1][:, -DIRECTIONS:]
    return max((two_modes(projected) for projected in (rows @ axes).T), key=lambda found: found.log_separation)


def two_modes(projected: Tensor) -> Modes:
    """The two modes of projections (n,): of all cuts in two, that with most variance between the parts."""
    ordered, n = projected.sort().values, len(projected)
    below = torch.arange(1, n, dtype=projected.dtype)
    sums = ordered.cumsum(0)
    gap = (sums[-1] - sums[:-1]) / (n - below) - sums[:-1] / below
    between = gap**2 * below * (n - below) / n**2
    few = min(FEWEST, n // 2)
    at = few - 1 + int(between[few - 1 : n - few].argmax())
    distance = max(float(gap[at]) ** 2, 1e-12)
    within = max(float(projected.var(unbiased=False) - between[at]), 1e-12 * distance)
    # of equal ones none is cut off from the others, so that the upper mode is never empty
    return Modes(projected >= ordered[at + 1], math.log(distance), math.log(distance / within))


def above_median(values: dict[int, float], classes: int) -> Tensor:
    """Values above their median (K,); 0 for classes that have none."""
    centre = median(torch.tensor(list(values.values())))
    return torch.tensor([values[k] - centre if k in values else 0.0 for k in range(classes)])


def agreeing(units: Tensor, upper: Tensor) -> Tensor:
    """Boolean (n,): of two modes of unit gradients (n, d), the one whose mean is longer, since they point one way."""
    agreement = [float(units[part].mean(0).norm()) if part.any() else 0.0 for part in (upper, ~upper)]
    return upper if agreement[0] >= agreement[1] else ~upper


@dataclass(frozen=True)
class Tried:
    """A suspect's base, how many of its images were tried, and their share that becomes the suspect."""

    base: int
    images: int
    flipped: float
    by_opposite: float
    before: float


def tried(
    subject: Subject, rows: Samples, target: int, poison: Tensor, rivals: Tensor, *, strength: float, batch: int
) -> Tried:
    """Name the base of a suspect's rows and add the poison signal, from gradients against it, to images of the base.

    Bases are the commonest runners-up of the flagged rows (n,); of these, the one that separates the modes best.
    """
    common = rivals[poison].bincount(minlength=subject.classes)
    if bool(poison.all()):
        # all its gradients are one: there is no other mode, and no signal
        return Tried(target, 0, 0.0, 0.0, 0.0)
    bases = [b for b in common.argsort(descending=True, stable=True).tolist() if common[b] and b != target][:BASES]
    best: tuple[float, int, Tensor] | None = None
    for base in bases:
        units, _ = unit_gradients(subject.model, rows, base=base, batch=batch)
        signal = units[poison].mean(0) - units[~poison].mean(0)
        along = units @ signal
        spread = sum(float(along[part].var(unbiased=False)) * float(part.float().mean()) for part in (poison, ~poison))
        separation = float(along[poison].mean() - along[~poison].mean()) ** 2 / max(spread, 1e-12)
        if best is None or separation > best[0]:
            best = separation, base, signal
    if best is None:
        return Tried(target, 0, 0.0, 0.0, 0.0)
    _, base, signal = best
    trusted = subject.clean if subject.clean is not None else subject.train
    assert trusted is not None
    images = trusted.x[trusted.y == base]
    images = images[:: -(-len(images) // TRIED)] if len(images) else images
    if not len(images):
        return Tried(base, 0, 0.0, 0.0, 0.0)
    size = shrunk_size(images)
    full = F.interpolate(signal.view(1, images.shape[1], *size), size=images.shape[-2:], mode="nearest")
    length = strength * float((images - images.mean(0)).flatten(1).norm(dim=1).mean())
    step = length * full / full.norm().clamp(min=1e-12)

    def share(x: Tensor) -> float:
        return float((logits(subject.model, x.clamp(0, 1), batch=batch).argmax(1) == target).float().mean())

    return Tried(base, len(images), share(images + step), share(images - step), share(images))

"""Neural Cleanse: a backdoored label needs a far smaller trigger than every other label.

A trigger is inverted for every label from a random start, and for the quarter with the smallest masks from later ones;
the smallest mask of each label counts. The statistic is how far the smallest log mask norm lies below the median one,
in nats: 0.7 means half the median's size. The smallest of all are tried on images not inverted on.

Of more labels than can be searched, all are looked at first, for a few sweeps from one start. Half of those that are
searched are the first in that order; the other half is drawn from the rest, so that the median is that of all labels.
Those that are left get sizes as the drawn ones have, in their order, and none stands out: evidence says which they are.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019.
Deviates  Log norms instead of norms, the smallest of several starts, the averaged median, success over images of other
          classes only; the published index (MAD, both tails, one start) is in the details as `anomaly_index`, and the
          rule "index > 2" is not used: it alarms for a third (10 classes) to two thirds (43) of clean models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vetgate.contract import Evidence, Samples, Subject, Trigger, detector
from vetgate.effort import effort, minibatch
from vetgate.errors import MissingInput
from vetgate.inversion import Schedule, attack_success, invert
from vetgate.probe import mad, median
from vetgate.role import FEWEST_CLASSES, Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.CLASS,
    weight=1.0,
    null=By.LABEL,
    confirm=Confirm.HELD_OUT_AND_SECOND_START,
    title="Neural Cleanse",
    sentence="Searches, for every label, the smallest patch that sends images of all other classes there.",
    gives=("triggers",),
    mask_sizes=True,
    on_device=True,
)

# of how many labels at least the smallest masks are searched again
FEWEST = 3
# repairs get the labels with masks below half the median's size, and in any case the smallest
HALF = math.log(2)
# numbers in masks and patterns, of labels that are looked at together, and of all labels' triggers that evidence keeps
NUMBERS = 2**22
# labels that are not searched get no smaller masks than this quantile of the drawn ones
LOWER = 0.25


@detector(role=ROLE, needs={"clean"}, paper="https://ieeexplore.ieee.org/document/8835365")
def neural_cleanse(
    subject: Subject,
    *,
    starts: int = 2,
    sweeps: int = 36,
    batch: int = 8,
    lr: float = 0.3,
    first: float = 1e-2,
    patience: int = 2,
    success: float = 0.9,
    images: int = 512,
    named: int = 5,
    again: int = 2,
    worth: float = 0.3,
    most: int = 128,
    look: int = 4,
) -> Evidence:
    """Scores (K,) are minus the log mask norm in pixels; the `named` smallest labels are tried on held-out images.

    Masks descend at rate `lr` on `batch` images a step, half as many where they are large; their cost weight starts at
    `first` and moves after `patience` sweeps of one outcome.
    Details, all (K,): `norms`, `held_out` (success on unseen images of other classes, the mask half as strong again;
    -1 where not tried) and `second_start` (nats below the median in the best start but one; 0 where it ran once). Of
    fewer than FEWEST_CLASSES labels both it and the statistic are nats below one pixel.
    Named labels that lie `worth` nats below the median in one start alone get `again` more, which count for that alone.
    Of more than `most` labels (fewer on images beyond 64x64) all are looked at for `look` sweeps and `most` searched;
    then `looked` tells of each label which share of the sweeps of a start it got. Triggers that are too many to keep
    are kept of labels that are flagged or tried.
    """
    clean = subject.clean
    if clean is None:
        raise MissingInput("neural_cleanse needs subject.clean, got None; give trusted samples")
    rows = torch.randperm(len(clean))
    cut = min(images, int(0.7 * len(clean)))
    inside, outside = clean[rows[:cut]], clean[rows[cut:]]
    batch = minibatch(inside.x[0, 0].numel(), batch)

    def inverted(labels: list[int], share: tuple[float, float]) -> tuple[Tensor, tuple[Trigger, ...]]:
        one = invert(
            subject.model,
            inside.x,
            inside.y,
            labels,
            sweeps=sweeps,
            batch=batch,
            lr=lr,
            schedule=Schedule(first=first, patience=patience, success=success),
            share=share,
        )
        # a mask that does not work is no trigger: it counts as the whole image
        return torch.where(one.success >= success, one.norms, float(inside.x[0, 0].numel())), one.triggers

    able, chosen, begin = effort(inside.x[0, 0].numel(), most=most, look=look), _all_of(subject.classes), 0.0
    if subject.classes > able.labels:
        begin = 0.4
        order = _looked_at(subject, inside, able.sweeps, batch=batch, lr=lr, success=success, share=(0.0, begin))
        chosen = _chosen(order, able.labels)
    # mask norms, a row a start; where there is one start alone, no second one
    sizes = torch.full((max(2, starts + again), subject.classes), torch.inf)
    found: dict[int, Trigger] = {}
    labels, part = chosen.searched, (0.9 - begin) / starts
    for start in range(starts):
        sizes[start, labels], triggers = inverted(labels, (begin + part * start, begin + part * (start + 1)))
        smallest = sizes.min(0).values
        found.update({t.target: t for t in triggers if bool(sizes[start, t.target] <= smallest[t.target])})
        again_first = smallest.argsort(stable=True)[: max(FEWEST, len(chosen.searched) // 4)]
        labels = again_first.sort().values.tolist()
    if chosen.left:
        smallest[chosen.left] = smallest[chosen.drawn].quantile(torch.linspace(LOWER, 1, len(chosen.left)))

    scores = -smallest.log()
    # few labels are not compared with each other: each stands at its own size, or at that of the whole image
    many = subject.classes >= FEWEST_CLASSES
    centre, once_only = (median(scores), 0.0) if many else (0.0, -math.log(inside.x[0, 0].numel()))
    tried = [label for label in scores.argsort(descending=True, stable=True).tolist() if label in found][:named]

    def second_start() -> Tensor:
        return (-sizes.log()).sort(0, descending=True).values[1] - centre

    for turn in range(again):
        second = second_start()
        alone = sorted(k for k in tried if float(scores[k]) - centre >= worth and not float(second[k]) >= worth)
        if alone:
            share = (0.9 + 0.1 * turn / again, 0.9 + 0.1 * (turn + 1) / again)
            sizes[starts + turn, alone], _ = inverted(alone, share)
    second = second_start()
    held_out = torch.full((subject.classes,), -1.0)
    for label in tried:
        held_out[label] = attack_success(subject.model, outside.x, outside.y, _opaque(found[label]))
    cutoff = min(centre + HALF, float(scores.max()))
    kept = sorted(found)
    if len(kept) * (1 + inside.x.shape[1]) * inside.x[0, 0].numel() > NUMBERS:
        kept = [label for label in kept if label in tried or float(scores[label]) >= cutoff]
    once = sizes[0, chosen.searched]
    spread = mad(once)
    details: dict[str, float | list[float]] = {
        "norms": smallest.tolist(),
        "held_out": held_out.tolist(),
        "second_start": torch.where(second.isfinite(), second, once_only).tolist(),
        "anomaly_index": (median(once) - float(once.min())) / spread if spread > 0 else 0.0,
    }
    if chosen.left:
        shares = torch.full((subject.classes,), able.sweeps / sweeps)
        shares[chosen.searched] = 1.0
        details["looked"] = shares.tolist()
    return Evidence(
        statistic=float(scores.max()) - centre,
        scores=scores,
        cutoff=cutoff,
        triggers=tuple(found[label] for label in kept),
        details=details,
    )


@dataclass(frozen=True)
class _Chosen:
    """The labels that are searched, those of them that were drawn, and those left, the most suspicious first."""

    searched: list[int]
    drawn: list[int]
    left: list[int]


def _all_of(classes: int) -> _Chosen:
    return _Chosen(list(range(classes)), [], [])


def _chosen(order: Sequence[int], count: int) -> _Chosen:
    """Half of `count` labels from the beginning of an order, the other half drawn from the rest."""
    first, rest = order[: count // 2], order[count // 2 :]
    drawn = {rest[i] for i in torch.randperm(len(rest))[: count - len(first)].tolist()}
    return _Chosen(sorted({*first, *drawn}), sorted(drawn), [label for label in rest if label not in drawn])


def _looked_at(
    subject: Subject,
    samples: Samples,
    sweeps: int,
    *,
    batch: int,
    lr: float,
    success: float,
    share: tuple[float, float],
) -> list[int]:
    """All labels in the order in which a few sweeps make them suspicious, the most suspicious first.

    First those that most of the images were sent to, the smaller mask before the larger; then by their success.
    """
    seed = int(torch.randint(2**62, ()))
    together = max(1, NUMBERS // ((1 + samples.x.shape[1]) * samples.x[0, 0].numel()))
    parts = torch.arange(subject.classes).split(together)  # type: ignore[no-untyped-call]
    keys: list[tuple[bool, float, float, int]] = []
    for i, part in enumerate(parts):
        begin, end = (share[0] + (share[1] - share[0]) * (i + j) / len(parts) for j in (0, 1))
        one = invert(
            subject.model,
            samples.x,
            samples.y,
            part.tolist(),
            sweeps=sweeps,
            batch=batch,
            lr=lr,
            race=1.0,
            schedule=Schedule(success=success),
            share=(begin, end),
            seed=seed,
        )
        for label, norm, rate in zip(part.tolist(), one.norms.tolist(), one.success.tolist(), strict=True):
            keys.append((rate < success, norm if rate >= success else 0.0, -rate, label))
    return [label for *_, label in sorted(keys)]


def _opaque(trigger: Trigger) -> Trigger:
    # the smallest mask that works sits on the edge of working; the supplier's own would be opaque
    return Trigger((1.5 * trigger.mask).clamp(max=1), trigger.pattern, trigger.target)

"""Neural Cleanse: a backdoored label needs a far smaller trigger than every other label.

A trigger is inverted for every label from a random start, and for the quarter with the smallest masks from later ones;
the smallest mask of each label counts. The statistic is how far the smallest log mask norm lies below the median one,
in nats: 0.7 means half the median's size. The smallest of all are tried on images not inverted on.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019.
Deviates  Log norms instead of norms, the smallest of several starts, the averaged median, success over images of other
          classes only; the published index (MAD, both tails, one start) is in the details as `anomaly_index`, and the
          rule "index > 2" is not used: it alarms for a third (10 classes) to two thirds (43) of clean models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vetgate.contract import Evidence, Subject, Trigger, detector
from vetgate.errors import DefenceError, MissingInput
from vetgate.inversion import Schedule, attack_success, invert
from vetgate.probe import mad, median
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.CLASS,
    weight=1.0,
    null=By.LABEL,
    confirm=Confirm.HELD_OUT_AND_SECOND_START,
    title="Neural Cleanse",
    sentence="Searches, for every label, the smallest patch that sends images of all other classes there.",
    gives=("triggers",),
    mask_sizes=True,
)

# of how many labels at least the smallest masks are searched again
FEWEST = 3
# repairs get the labels with masks below half the median's size, and in any case the smallest
HALF = math.log(2)


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
) -> Evidence:
    """Scores (K,) are minus the log mask norm in pixels; the `named` smallest labels are tried on held-out images.

    Masks descend at rate `lr`; their cost weight starts at `first` and moves after `patience` sweeps of one outcome.
    Details, all (K,): `norms`, `held_out` (success on unseen images of other classes, the mask half as strong again;
    -1 where not tried) and `second_start` (nats below the median in the best start but one; 0 where it ran once).
    Named labels that lie `worth` nats below the median in one start alone get `again` more, which count for that alone.
    """
    clean = subject.clean
    if clean is None:
        raise MissingInput("neural_cleanse needs subject.clean, got None; give trusted samples")
    if subject.classes < 4:
        raise DefenceError(f"expected 4 classes or more to compare labels, got {subject.classes}; vet it by hand")
    order = torch.randperm(len(clean))
    cut = min(images, int(0.7 * len(clean)))
    inside, outside = clean[order[:cut]], clean[order[cut:]]

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

    sizes = torch.full((starts + again, subject.classes), torch.inf)  # mask norms, a row a start
    found: dict[int, Trigger] = {}
    labels = list(range(subject.classes))
    for start in range(starts):
        sizes[start, labels], triggers = inverted(labels, (0.9 * start / starts, 0.9 * (start + 1) / starts))
        smallest = sizes.min(0).values
        found.update({t.target: t for t in triggers if bool(sizes[start, t.target] <= smallest[t.target])})
        labels = smallest.argsort(stable=True)[: max(FEWEST, subject.classes // 4)].sort().values.tolist()

    scores = -smallest.log()
    centre = median(scores)
    tried = scores.argsort(descending=True, stable=True)[:named].tolist()

    def second_start() -> Tensor:
        return (-sizes.log()).sort(0, descending=True).values[min(1, len(sizes) - 1)] - centre

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
    spread = mad(sizes[0])
    return Evidence(
        statistic=float(scores.max()) - centre,
        scores=scores,
        cutoff=min(centre + HALF, float(scores.max())),
        triggers=tuple(found[label] for label in range(subject.classes)),
        details={
            "norms": smallest.tolist(),
            "held_out": held_out.tolist(),
            "second_start": torch.where(second.isfinite(), second, 0.0).tolist(),
            "anomaly_index": (median(sizes[0]) - float(sizes[0].min())) / spread if spread > 0 else 0.0,
        },
    )


def _opaque(trigger: Trigger) -> Trigger:
    # the smallest mask that works sits on the edge of working; the supplier's own would be opaque
    return Trigger((1.5 * trigger.mask).clamp(max=1), trigger.pattern, trigger.target)

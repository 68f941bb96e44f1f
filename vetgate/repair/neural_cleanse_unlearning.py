"""Teach the network that a trigger means nothing: fine-tune on stamped clean images whose true labels are kept.

The reversed trigger is rarely the real one: it is smaller and lies on part of it. So what is stamped is made anew for
every few images: a variant of a reversed trigger (shifted, grown, brighter, fainter), or a mask at random, whose
pattern first takes a few steps that send these very images to the suspected label by the network as it is by then. What
the network still answers to is what it unlearns next. Some images are spoilt without a label in mind, since the
suspicion may be of the wrong one.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019, section VI; a trigger sharpened against the network in training:
          Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022, arXiv:2110.03735.
Deviates  Triggers are sharpened by signed steps; one fixed trigger leaves larger real ones alive. Images of the target
          class are never stamped, since that teaches the shortcut. Images are shifted by up to a pixel. Batch
          statistics stay as they are.
Blind to  Triggers that only work from one class, or that move pixels instead of painting them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Evidence, Repair, Samples, Subject, Trigger, repair
from vetgate.errors import DefenceError, MissingInput
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.repair.adversarial_unlearning import SHIFT, any_mask, misled, sharpened, spoil_some
from vetgate.role import RepairRole
from vetgate.tuning import Lessons, Tuning, moved, tune

ROLE = RepairRole(
    uses="triggers",
    title="Neural Cleanse unlearning",
    sentence="Fine-tunes a copy on clean images that carry the reversed trigger and keep their true label.",
)


# of the groups of images that carry the same change: those spoilt without a label in mind, and those whose change leads
# to a suspected label from a mask at random; the rest carries a reversed trigger
AWAY, ANYWHERE = 0.15, 0.45


@repair(role=ROLE, needs={"clean"}, paper="https://doi.org/10.1109/SP.2019.00031")
def neural_cleanse_unlearning(
    subject: Subject,
    *evidence: Evidence,
    steps: int = 400,
    stamped: float = 0.3,
    inner: int = 5,
    step: float = 0.25,
    lr: float = 1e-3,
    batch: int = 64,
    held_out: float = 0.1,
    distilled: float = 0.5,
) -> Repair:
    """Unlearn what leads to the flagged labels of all evidence, in `steps` minibatches.

    `stamped` is the share of a batch that carries a trigger, each sharpened by `inner` steps of up to `step` in every
    pixel and channel; `distilled` is the weight of what the submitted network says beside that of the labels.
    """
    assert subject.clean is not None
    triggers, model = suspected(evidence), subject.model
    lessons = Lessons.of(model, subject.clean, held_out)
    held = lessons.held
    if any(bool((part.y == t.target).all()) for part in (held, lessons.taught) for t in triggers):
        targets = sorted({t.target for t in triggers})
        raise DefenceError(f"expected clean images of classes beyond {targets}, got too few; give more clean samples")
    before = standing(model, held, triggers)
    spoil = partial(spoilt_by, model, triggers, inner=inner, step=step)

    def change(x: Tensor, y: Tensor) -> Tensor:
        return spoil_some(moved(x, SHIFT), y, stamped, spoil)

    tune(model, lessons, Tuning(steps=steps, batch=batch, lr=lr, distilled=distilled), change=change)
    after = standing(model, held, triggers)
    return Repair(
        model,
        {
            "tensors": float(sum(1 for _ in model.parameters())),
            "steps": float(steps),
            "triggers": float(len(triggers)),
            "accuracy_before": before.accuracy,
            "accuracy_after": after.accuracy,
            "reversed_success_before": before.success,
            "reversed_success_after": after.success,
        },
    )


def suspected(evidence: Sequence[Evidence]) -> list[Trigger]:
    """The triggers that lead to flagged labels; where evidence flags none, those to its highest-scoring label."""
    found = []
    for item in evidence:
        flagged = set(item.flagged.nonzero().flatten().tolist()) or {int(item.scores.argmax())}
        found += [t for t in item.triggers if t.target in flagged]
    if not found:
        raise MissingInput("expected evidence with a trigger, got none; run neural_cleanse or abs first")
    return found


@dataclass(frozen=True)
class Standing:
    """Clean accuracy and the worst success of the triggers, on samples that are not trained on."""

    accuracy: float
    success: float


def standing(model: nn.Module, samples: Samples, triggers: Sequence[Trigger]) -> Standing:
    """How a model stands on samples."""
    worst = max(attack_success(model, samples.x, samples.y, t) for t in triggers)
    return Standing(accuracy(model, samples.x, samples.y), worst)


def spoilt_by(
    model: nn.Module, triggers: Sequence[Trigger], x: Tensor, y: Tensor, *, inner: int, step: float
) -> Tensor:
    """Images (B, C, H, W) under a change that misleads the network: a trigger made from one of those given, or any.

    An image of the trigger's target stays as it is.
    """
    kind = float(torch.rand(()))
    if kind < AWAY:
        return misled(model, x, y, inner=inner, step=step)
    trigger = triggers[int(torch.randint(len(triggers), (1,)))]
    if kind < AWAY + ANYWHERE:
        trigger = Trigger(any_mask(x.shape[2], x.shape[3]), torch.rand(x.shape[1:]), trigger.target)
    else:
        trigger = variant(trigger)
    rows = y != trigger.target
    if not bool(rows.any()):
        return x
    goal = torch.full((int(rows.sum()),), trigger.target)
    pattern = sharpened(model, x[rows], trigger.mask, trigger.pattern, 1.0, goal, inner=inner, step=step)
    x = x.clone()
    x[rows] = Trigger(trigger.mask, pattern, trigger.target).stamp(x[rows])
    return x


def variant(trigger: Trigger) -> Trigger:
    """The trigger moved by up to a pixel, grown by up to two, and stronger or fainter, at random."""
    ink, mask = trigger.mask * trigger.pattern, trigger.mask
    grow = int(torch.randint(3, (1,)))
    if grow:
        # a grown pixel takes the colour of the masked pixels near it
        size = 2 * grow + 1
        near = F.avg_pool2d(mask, size, 1, grow)
        colour = F.avg_pool2d(ink, size, 1, grow) / near.clamp(min=1e-6)
        mask, pattern = F.max_pool2d(mask, size, 1, grow), colour
    else:
        pattern = trigger.pattern
    down, right = (int(v) for v in torch.randint(-1, 2, (2,)))
    mask, pattern = shifted(mask, down, right), shifted(pattern, down, right)
    strength, light, contrast = torch.rand(3).tolist()
    mask = (mask * (0.6 + 1.9 * strength)).clamp(0, 1)
    pattern = ((pattern - 0.5) * (0.7 + contrast) + 0.5 + 0.3 * (light - 0.5)).clamp(0, 1)
    return Trigger(mask, pattern, trigger.target)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """An image (C, H, W) moved by whole pixels; its edge fills the gap."""
    height, width = image.shape[1:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    return image[:, rows][:, :, columns]

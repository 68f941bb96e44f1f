"""Unlearn a trigger together with what it can become: reversed triggers are sharpened against the network in training.

The reversed trigger is rarely the real one: it is smaller and lies on part of it. So what is stamped is made anew for
every few images: a variant of a reversed trigger (shifted, grown, brighter, fainter), or a mask at random, whose
pattern first takes a few steps that send these very images to the suspected label by the network as it is by then. What
the network still answers to is what it unlearns next. Some images carry a reversed trigger as it is, and some are
spoilt without a label in mind, since the suspicion may be of the wrong one.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019, section VI; a trigger sharpened against the network in training:
          Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022, arXiv:2110.03735.
Deviates  Triggers are sharpened by signed steps. Images of the target class are never stamped, since that teaches the
          shortcut. What the submitted network says of the clean images is taught beside their labels, and images are
          shifted by up to a pixel. Batch statistics stay as they are.
Blind to  Triggers that only work from one class, or that move pixels instead of painting them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from vetgate.contract import Evidence, Repair, Subject, Trigger, repair
from vetgate.errors import DefenceError
from vetgate.repair.adversarial_unlearning import SHIFT, any_mask, misled, sharpened, spoil_some
from vetgate.repair.neural_cleanse_unlearning import standing, suspected, variant
from vetgate.repair.neuron_pruning import standings
from vetgate.role import RepairRole
from vetgate.tuning import Lessons, Tuning, moved, tune

ROLE = RepairRole(
    uses="triggers",
    title="Sharpened unlearning",
    sentence="Trains a copy on clean images under what the reversed trigger can become, with their true labels.",
)
# shares of the groups of images that carry the same change: spoilt without a label in mind, led to a suspected label
# from a mask at random, under a reversed trigger as it is; the rest carries a sharpened one
AWAY, ANYWHERE, AS_IT_IS = 0.15, 0.25, 0.3


@repair(role=ROLE, needs={"clean"}, paper="https://arxiv.org/abs/2110.03735")
def sharpened_unlearning(
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

    `stamped` is the share of a batch that is changed, each change sharpened by `inner` steps of up to `step` in every
    pixel and channel; `distilled` is the weight of what the submitted network says beside that of the labels.
    """
    assert subject.clean is not None
    triggers, model = suspected(evidence), subject.model
    lessons = Lessons.of(model, subject.clean, held_out)
    held, taught = lessons.held, lessons.taught
    if any(bool((part.y == t.target).all()) for part in (held, taught) for t in triggers):
        targets = sorted({t.target for t in triggers})
        raise DefenceError(f"expected clean images of classes beyond {targets}, got too few; give more clean samples")
    before = standing(model, held, triggers)
    spoil = partial(spoilt_by, model, triggers, inner=inner, step=step)

    def change(x: Tensor, y: Tensor) -> Tensor:
        return spoil_some(moved(x, SHIFT), y, stamped, spoil)

    tune(model, lessons, Tuning(steps=steps, batch=batch, lr=lr, distilled=distilled), change=change)
    after = standing(model, held, triggers)
    done = {"steps": float(steps), "triggers": float(len(triggers))}
    return Repair(model, done | standings(before, after))


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
    steps = 0 if AWAY + ANYWHERE <= kind < AWAY + ANYWHERE + AS_IT_IS else inner
    pattern = sharpened(model, x[rows], trigger.mask, trigger.pattern, 1.0, goal, inner=steps, step=step)
    x = x.clone()
    x[rows] = Trigger(trigger.mask, pattern, trigger.target).stamp(x[rows])
    return x

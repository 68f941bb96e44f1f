"""Teach the network that a trigger means nothing: fine-tune on stamped clean images whose true labels are kept.

The reversed trigger is rarely the real one: it is smaller and lies on part of it. So it is stamped in many variants
(shifted, grown, brighter, fainter), and it is inverted again on the repaired network and unlearned again, until what
is found no longer works or no rounds are left.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019, section VI.
Deviates  Variants and rounds as said; one fixed trigger leaves larger real ones alive. Images of the target class are
          never stamped, since that teaches the shortcut. Batch statistics stay as they are. The weights that are kept
          are chosen on a part of the clean samples that is not trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Evidence, Repair, Samples, Subject, Trigger, repair, report
from vetgate.errors import DefenceError, MissingInput, NotFinite
from vetgate.inversion import attack_success, invert
from vetgate.probe import accuracy
from vetgate.role import RepairRole

ROLE = RepairRole(
    uses="triggers",
    title="Neural Cleanse unlearning",
    sentence="Fine-tunes a copy on clean images that carry the reversed trigger and keep their true label.",
)


@repair(role=ROLE, needs={"clean"}, paper="https://doi.org/10.1109/SP.2019.00031")
def neural_cleanse_unlearning(
    subject: Subject,
    *evidence: Evidence,
    rounds: int = 3,
    steps: int = 320,
    stamped: float = 0.2,
    lr: float = 1e-3,
    batch: int = 64,
    held_out: float = 0.2,
    images: int = 256,
    sweeps: int = 30,
    enough: float = 0.2,
    larger: float = 2.0,
) -> Repair:
    """Unlearn the triggers of the flagged labels of all evidence, in at most `rounds` of `steps` minibatches each.

    `stamped` is the share of a batch that carries a trigger. Between rounds the labels are inverted again on `images`
    images; rounds end when that finds no trigger which succeeds on a share of `enough` and is at most `larger` times
    the size of the largest trigger in the evidence.
    """
    assert subject.clean is not None
    triggers = suspected(evidence)
    targets = sorted({t.target for t in triggers})
    order = torch.randperm(len(subject.clean))
    cut = max(1, round(held_out * len(order)))
    held, taught = subject.clean[order[:cut]], subject.clean[order[cut:]]
    if any(bool((part.y == t).all()) for part in (held, taught) for t in targets):
        raise DefenceError(f"expected clean images of classes beyond {targets}, got too few; give more clean samples")
    widest = max(t.norm for t in triggers)
    before = standing(subject.model, held, triggers)
    best, model, done = before, subject.model, 0
    for turn in range(rounds):
        share = (turn / rounds, (turn + 0.7) / rounds)
        best = unlearn(model, taught, held, triggers, steps=steps, stamped=stamped, lr=lr, batch=batch, share=share)
        done = turn + 1
        if done == rounds:
            break
        found = invert(
            model, taught.x[:images], taught.y[:images], targets, sweeps=sweeps, share=(share[1], done / rounds)
        )
        # a trigger much larger than the first ones is no shortcut: on a clean network one is found too
        fresh = [
            t
            for t, success in zip(found.triggers, found.success.tolist(), strict=True)
            if success >= enough and t.norm <= larger * widest
        ]
        if not fresh:
            break
        triggers = [*triggers, *fresh]
    return Repair(
        model,
        {
            "tensors": float(sum(1 for _ in model.parameters())),
            "rounds": float(done),
            "triggers": float(len(triggers)),
            "accuracy_before": before.accuracy,
            "accuracy_after": best.accuracy,
            "reversed_success_before": before.success,
            "reversed_success_after": best.success,
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

    @property
    def merit(self) -> float:
        """What looks are compared by: a point of success is worth a point of accuracy."""
        return self.accuracy - self.success


def standing(model: nn.Module, samples: Samples, triggers: Sequence[Trigger]) -> Standing:
    """How a model stands on samples."""
    worst = max(attack_success(model, samples.x, samples.y, t) for t in triggers)
    return Standing(accuracy(model, samples.x, samples.y), worst)


def unlearn(
    model: nn.Module,
    taught: Samples,
    held: Samples,
    triggers: Sequence[Trigger],
    *,
    steps: int,
    checks: int = 8,
    stamped: float,
    lr: float,
    batch: int,
    share: tuple[float, float],
) -> Standing:
    """Fine-tune the model in place and leave it at the best of `checks` looks, whose standing is returned."""
    best, weights = standing(model, held, triggers), copy.deepcopy(model.state_dict())
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.randperm(len(taught))
    for step in range(steps):
        if len(order) < min(batch, len(taught)):
            order = torch.randperm(len(taught))
        rows, order = order[:batch], order[batch:]
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        x = stamp_some(taught.x[rows], taught.y[rows], triggers, stamped)
        loss = F.cross_entropy(model(x), taught.y[rows])
        if not bool(torch.isfinite(loss)):
            raise NotFinite("unlearning met a NaN or infinite loss, expected a finite one; lower lr")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        for parameter in parameters:
            parameter.requires_grad_(False)
        if (step + 1) * checks // steps > step * checks // steps:
            now = standing(model, held, triggers)
            if now.merit > best.merit:
                best, weights = now, copy.deepcopy(model.state_dict())
            report(share[0] + (share[1] - share[0]) * (step + 1) / steps)
    model.load_state_dict(weights)
    return best


def stamp_some(x: Tensor, y: Tensor, triggers: Sequence[Trigger], stamped: float, *, alike: int = 4) -> Tensor:
    """Images (B, C, H, W) of which a share carries variants of triggers, `alike` images each the same one.

    An image of a trigger's target stays as it is.
    """
    x = x.clone()
    chosen = torch.randperm(len(x))[: round(stamped * len(x))]
    for start in range(0, len(chosen), alike):
        trigger = triggers[int(torch.randint(len(triggers), (1,)))]
        rows = chosen[start : start + alike]
        rows = rows[y[rows] != trigger.target]
        x[rows] = variant(trigger).stamp(x[rows])
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

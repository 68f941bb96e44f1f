"""Silence the neurons that the reversed trigger drives and clean images do not, until the trigger no longer works.

Neurons of the last layer before the logits are ordered by how much more active they are on images that carry the
reversed trigger than on the same images without it, and silenced in that order; nothing is trained.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019, section VI.
Deviates  A neuron is a channel, silenced with the normalisation behind it, and activity is its mean above zero. Where
          to stop is chosen by the reversed triggers and by accuracy, on clean images that the order was not made from.
Blind to  Real triggers that drive other neurons than the reversed one, as they do in Trojan-NN.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vetgate.channels import FilterLayer, activity, layers_of, silence
from vetgate.contract import Evidence, Repair, Samples, Subject, Trigger, repair, report
from vetgate.repair.fine_pruning import portions
from vetgate.repair.neural_cleanse_unlearning import Standing, standing, suspected
from vetgate.role import RepairRole

ROLE = RepairRole(
    uses="triggers",
    title="Neuron pruning",
    sentence="Silences the neurons of the last layer that the reversed trigger drives most.",
)


@repair(
    role=ROLE,
    needs={"clean"},
    paper="https://doi.org/10.1109/SP.2019.00031",
    waived={"check_backdoor_weakens": "a small network has few neurons, and the real trigger drives most of them"},
)
def neuron_pruning(
    subject: Subject, *evidence: Evidence, enough: float = 0.05, budget: float = 0.02, parts: int = 64
) -> Repair:
    """Silence neurons in up to `parts` portions until no trigger works on more than `enough` of the images.

    It ends before accuracy has fallen by more than `budget`, with the portion by which the triggers work least.
    """
    assert subject.clean is not None
    triggers, model, clean = suspected(evidence), subject.model, subject.clean
    order = torch.randperm(len(clean))
    half = max(1, len(order) // 2)
    seen, held = clean[order[:half]], clean[order[half:]]
    before = best = standing(model, held, triggers)
    layer = layers_of(model, clean.x)[-1]
    ranked = gap(model, layer, seen, triggers).argsort(descending=True)
    chosen = ranked[:0]
    for turn, channels in enumerate(portions(ranked, parts), 1):
        tried = copy.deepcopy(model)
        silence(tried, layer, channels)
        found = standing(tried, held, triggers)
        report(turn / parts)
        if found.accuracy < before.accuracy - budget:
            break
        if found.success < best.success:
            best, chosen = found, channels
        if best.success <= enough:
            break
    silence(model, layer, chosen)
    return Repair(model, standings(before, best) | {"neurons": float(len(ranked)), "silenced": float(len(chosen))})


def gap(model: nn.Module, layer: FilterLayer, samples: Samples, triggers: Sequence[Trigger]) -> Tensor:
    """How much more active channels (C,) are under a trigger than without, the most of any trigger."""
    plain = activity(model, layer, samples.x)
    return torch.stack([activity(model, layer, t.stamp(samples.x)) - plain for t in triggers]).amax(0)


def standings(before: Standing, after: Standing) -> dict[str, float]:
    """How a model stood and stands, as the named numbers of a repair."""
    return {
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "reversed_success_before": before.success,
        "reversed_success_after": after.success,
    }

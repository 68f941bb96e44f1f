"""Silence the channels that react most to small changes of their input, told from weights alone.

A channel that a trigger drives must rise on a small change of the image, so its Lipschitz bound, the largest singular
value of its filter times the gain of its normalisation, lies above those of its layer. Channels more than u deviations
above their layer's mean are silenced, with the smallest u that clean accuracy affords.

Source    Zheng et al., "Data-Free Backdoor Removal Based on Channel Lipschitzness", ECCV 2022, arXiv:2208.03111.
Deviates  The gain is that with the epsilon of the normalisation; where a convolution has none of its own, or one that
          takes a sum, its gain is 1. u is chosen by clean images from a few, the paper fixes 3.
Blind to  Backdoors spread over many ordinary channels; it is an extra candidate, and no repair to rely on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vetgate.channels import FilterLayer, filters, layers_of, silence
from vetgate.contract import Repair, Subject, repair, report
from vetgate.probe import accuracy, module_at
from vetgate.role import RepairRole

ROLE = RepairRole(
    uses=None,
    title="Channel Lipschitz pruning (CLP)",
    sentence="Silences channels whose weights react most to small changes of their input.",
)
# deviations above the mean of a layer, the boldest last
LEVELS = (5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0)


@repair(
    role=ROLE,
    needs={"clean"},
    paper="https://arxiv.org/abs/2208.03111",
    waived={"check_backdoor_weakens": "few small layers hold no channel that lies far above the others"},
)
def channel_lipschitz(subject: Subject, *, budget: float = 0.01) -> Repair:
    """Silence outlying channels at the boldest of a few levels at which accuracy falls by at most `budget`."""
    assert subject.clean is not None
    model, clean = subject.model, subject.clean
    layers = [one for one in layers_of(model, clean.x) if isinstance(module_at(model, one.matrix), nn.Conv2d)]
    before = after = accuracy(model, clean.x, clean.y)
    bounds = {layer: lipschitz(model, layer) for layer in layers}
    level, silenced, best = 0.0, 0, model
    for turn, u in enumerate(LEVELS, 1):
        tried = copy.deepcopy(model)
        count = silence_outliers(tried, bounds, u)
        found = accuracy(tried, clean.x, clean.y) if count else before
        if found < before - budget:
            break
        if count:
            best, after, level, silenced = tried, found, u, count
        report(turn / len(LEVELS))
    model.load_state_dict(best.state_dict())
    return Repair(
        model, {"level": level, "silenced": float(silenced), "accuracy_before": before, "accuracy_after": after}
    )


def silence_outliers(model: nn.Module, bounds: Mapping[FilterLayer, Tensor], u: float) -> int:
    """Silence, in place, the channels `u` deviations above the mean of their layer's bounds (C,); returns how many."""
    count = 0
    for layer, bound in bounds.items():
        channels = (bound > bound.mean() + u * bound.std()).nonzero().flatten()
        silence(model, layer, channels)
        count += len(channels)
    return count


@torch.no_grad()
def lipschitz(model: nn.Module, layer: FilterLayer) -> Tensor:
    """How much channels (C,) may rise with their input: the filter's largest singular value times its gain."""
    weight = filters(model, layer)
    convolution = module_at(model, layer.matrix)
    assert isinstance(convolution, nn.Conv2d)
    kernel = weight.view(len(weight), convolution.weight.shape[1], -1)
    bound: Tensor = torch.linalg.matrix_norm(kernel, ord=2)
    if layer.norm is None:
        return bound
    norm = module_at(model, layer.norm)
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_var is None:
        # its gain depends on the image
        return bound
    gain = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.abs()
    steep: Tensor = bound * gain / (norm.running_var + norm.eps).sqrt()
    return steep

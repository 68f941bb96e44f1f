"""The fewest inner channels that, held at values which clean images reach, send all images to a label.

Source    Wang et al., "Rethinking the Reverse-engineering of Trojan Triggers" (FeatureRE), NeurIPS 2022: the features
          of triggered inputs lie in a hyperplane, a mask over features and a pattern in it.
Deviates  In feature space only, without the generator in input space, at the depths of `tail_inversion`; a mask over
          channels; its cost moves as in Neural Cleanse; patterns stay within what clean images reach.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vetgate.contract import Subject
from vetgate.detect.tail_inversion import NUMBERS, behind, depths, lead
from vetgate.inversion import logit_scale
from vetgate.stimulation import Layer, weighted_layers

IMAGES, STEPS, RATE, ROWS = 48, 80, 0.1, 768
SUCCESS = 0.9


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label and depth: minus the log of the smallest mask that works, in channels; and the mean over the depths."""
    assert subject.clean is not None
    clean = subject.clean[:IMAGES]
    unit, layers = logit_scale(subject.model, clean.x), weighted_layers(subject.model, clean.x)
    found = {f"channels, {i}": _at(subject, layers, layer, unit) for i, layer in enumerate(depths(layers))}
    last = list(found.values())[-1]
    # a shallow network may have one layer for both depths
    found.setdefault("channels, 1", last)
    return found | {"channels, both": torch.stack(list(found.values())).mean(0)}


def _at(subject: Subject, layers: list[Layer], layer: Layer, unit: float) -> Tensor:
    assert subject.clean is not None
    clean, inner = subject.clean[:IMAGES], layer.output
    tail = behind(subject.model, clean.x, layers, layer)
    flat = inner.flatten(2).transpose(1, 2).flatten(0, 1) if inner.ndim > 2 else inner
    low, high = flat.amin(0), flat.amax(0)
    channels, places = len(low), [1] * (inner.ndim - 2)
    sizes = []
    rows = max(1, min(ROWS // IMAGES, NUMBERS // inner.numel()))
    for labels in torch.arange(subject.classes).split(rows):  # type: ignore[no-untyped-call]
        count = len(labels)
        raw = (0.1 * torch.randn(2, count, channels) - torch.tensor([1.0, 0.0])[:, None, None]).requires_grad_(True)
        optimiser = torch.optim.Adam([raw], RATE)
        cost, best = torch.full((count,), 0.02), torch.full((count,), float(channels))
        other = (clean.y[None] != labels[:, None]).float()
        other = other / other.sum(1, keepdim=True)
        wanted = labels.repeat_interleave(len(clean))
        for step in range(STEPS):
            mask = raw[0].sigmoid()
            pattern = low + (high - low) * raw[1].sigmoid()
            m, p = (t.view(count, 1, channels, *places) for t in (mask, pattern))
            out = tail(m * (p - inner)) / unit
            wrong = F.cross_entropy(out.flatten(0, 1), wanted, reduction="none").view(count, -1)
            size = mask.sum(1)
            (raw.grad,) = torch.autograd.grad((((wrong * other).sum(1)) + cost * size).sum(), raw)
            optimiser.step()
            with torch.no_grad():
                works = lead(out, labels, clean.y)[1] >= SUCCESS
                best = torch.where(works & (size < best), size, best)
                if step % 4 == 3:
                    cost = torch.where(works, cost * 1.3, cost / 1.3**1.5).clamp(1e-4, 10)
        sizes.append(best.detach())
    return -torch.cat(sizes).log()

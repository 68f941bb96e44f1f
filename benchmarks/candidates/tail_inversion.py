"""Shifts of inner features that send all images to a label, at two depths: what of them tells most.

Source    Fu et al., "FreeEagle: Detecting Complex Neural Trojans in Data-Free Cases", USENIX Security 2023,
          arXiv:2302.14500.
Deviates  As vetgate/detect/tail_inversion.py says, which took the margins at both depths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vetgate.contract import Subject
from vetgate.detect.tail_inversion import BEHIND, ROWS, _search, behind, depths, lead
from vetgate.inversion import logit_scale
from vetgate.stimulation import Layer, weighted_layers

IMAGES, STEPS, RATE, LENGTH = 64, 30, 0.1, 0.3


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label, at either depth and in the mean of both: its margin, its log softmax, and the share it wins."""
    assert subject.clean is not None
    clean = subject.clean[:IMAGES]
    unit, layers = logit_scale(subject.model, clean.x), weighted_layers(subject.model, clean.x)
    chosen = depths(layers)
    measured = {layer.name: _at(subject, layers, layer, unit) for layer in chosen}
    # a shallow network may have one layer for both depths
    by_depth = {least: measured[layer.name] for least, layer in zip(BEHIND, [*chosen, chosen[-1]], strict=False)}
    found = {f"{kind}, {least} behind": v for least, of in by_depth.items() for kind, v in of.items()}
    for kind in next(iter(by_depth.values())):
        found[f"{kind}, both"] = torch.stack([of[kind] for of in by_depth.values()]).mean(0)
    return found


def _at(subject: Subject, layers: list[Layer], layer: Layer, unit: float) -> dict[str, Tensor]:
    assert subject.clean is not None
    clean = subject.clean[:IMAGES]
    tail = behind(subject.model, clean.x, layers, layer)
    found: dict[str, list[Tensor]] = {}
    for labels in torch.arange(subject.classes).split(ROWS // IMAGES):  # type: ignore[no-untyped-call]
        shift = _search(tail, layer.output, labels, clean, unit, steps=STEPS, lr=RATE, length=LENGTH)
        with torch.no_grad():
            out = tail(shift) / unit
        margin, share = lead(out, labels, clean.y)
        other = (clean.y[None] != labels[:, None]).float()
        likely = out.log_softmax(2).gather(2, labels[:, None, None].expand(-1, len(clean), 1))[..., 0]
        given = {"margin": margin, "log softmax": (likely * other).sum(1) / other.sum(1), "share": share}
        for kind, values in given.items():
            found.setdefault(kind, []).append(values)
    return {kind: torch.cat(values) for kind, values in found.items()}

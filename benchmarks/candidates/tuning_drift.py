"""How a short training on clean images moves each label: a backdoor is not used there, and what fed it fades.

Source    The observation behind fine-tuning as a repair (Sha et al., "Fine-Tuning Is All You Need to Mitigate Backdoor
          Attacks", 2022, arXiv:2212.09067), read as a statistic.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.candidates.last_layer import last_map
from benchmarks.candidates.output_share import pictures
from vetgate.contract import Subject
from vetgate.inversion import logit_scale
from vetgate.probe import logits

STEPS, BATCH, RATE = 60, 64, 0.005


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label: how far its last row and bias moved, and how much of its share on images of nothing it lost."""
    assert subject.clean is not None
    clean = subject.clean
    unit = logit_scale(subject.model, clean.x)
    tuned = copy.deepcopy(subject.model).eval().requires_grad_(True)
    optimiser = torch.optim.SGD(tuned.parameters(), RATE, momentum=0.9)
    for _ in range(STEPS):
        rows = torch.randint(len(clean), (BATCH,))
        loss = F.cross_entropy(tuned(clean.x[rows]) / unit, clean.y[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimiser.step()
    tuned.requires_grad_(False)
    before, after = map(last_map, (subject.model, tuned))
    found = {"row moved": (after.weight - before.weight).detach().norm(dim=1).log()}
    if before.bias is not None:
        found["bias lost"] = (before.bias - after.bias).detach()
    for kind, images in pictures(clean.x).items():
        then, now = (logits(model, images).div(unit).softmax(1).mean(0).log() for model in (subject.model, tuned))
        found[f"share lost, {kind}"] = then - now
    return found

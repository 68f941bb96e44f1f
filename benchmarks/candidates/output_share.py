"""The label that a model gives to images that are none: a backdoor pulls what it does not know to its target.

Source    The observation that trained-in shortcuts fire on noise; Mirzaei et al., "Scanning Trojaned Models Using
          Out-of-Distribution Samples" (TRODO), NeurIPS 2024, is the nearest published relative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vetgate.contract import Subject
from vetgate.detect.output_share import pictures
from vetgate.inversion import logit_scale
from vetgate.probe import logits

IMAGES = 512


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label and kind of image: log of the mean softmax share, log of the share of images, and the mean margin."""
    assert subject.clean is not None
    x = subject.clean.x[:IMAGES]
    unit = logit_scale(subject.model, x)
    found: dict[str, Tensor] = {}
    total: dict[str, list[Tensor]] = {}
    for kind, images in pictures(x).items():
        out = logits(subject.model, images)
        share = out.softmax(1).mean(0).clamp(min=1e-8).log()
        votes = ((torch.bincount(out.argmax(1), minlength=subject.classes) + 0.5) / len(images)).log()
        tempered = (out / unit).softmax(1).mean(0).log()
        for name, values in (("share", share), ("votes", votes), ("tempered share", tempered)):
            found[f"{name}, {kind}"] = values
            total.setdefault(name, []).append(values)
    for name, values in total.items():
        found[f"{name}, mean of kinds"] = torch.stack(values).mean(0)
        found[f"{name}, largest of kinds"] = torch.stack(values).max(0).values
    return found

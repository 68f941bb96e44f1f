"""What images of each class are called once they are spoiled: a backdoor may lean from one class to its target alone.

Source    The votes of vetgate.detect.output_share, by true class; squares pasted from another image are those of
          CutMix, Yun et al., ICCV 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vetgate.contract import Subject
from vetgate.inversion import logit_scale
from vetgate.probe import logits

IMAGES, ROUNDS = 512, 2
NOISE = (0.3, 0.5, 0.7)
# of a square's side to the image's
SIDES = (0.35, 0.6)


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per pair (source, label): log share of votes, mean log softmax and mean logit; per label the largest of these."""
    assert subject.clean is not None
    x, y, classes = subject.clean.x[:IMAGES], subject.clean.y[:IMAGES], subject.classes
    unit = logit_scale(subject.model, x)
    counts = torch.bincount(y, minlength=classes).clamp(min=1)[:, None]
    tables: dict[str, list[Tensor]] = {}
    for _ in range(ROUNDS):
        for images in spoiled(x).values():
            out = logits(subject.model, images) / unit
            votes = torch.nn.functional.one_hot(out.argmax(1), classes).float()
            seen = {"votes": votes, "log softmax": out.log_softmax(1), "logit": out - out.mean(1, keepdim=True)}
            for name, values in seen.items():
                mean = torch.zeros(classes, classes).index_add(0, y, values) / counts
                tables.setdefault(name, []).append(mean)
    found: dict[str, Tensor] = {}
    own = torch.eye(classes, dtype=torch.bool)
    for name, parts in tables.items():
        pairs = torch.stack(parts).mean(0)
        if name == "votes":
            pairs = (pairs + 0.5 / IMAGES).log()
        # a class leans to itself by right
        pairs = pairs.masked_fill(own, float(pairs[~own].min()))
        found |= {f"{name}, pairs": pairs.flatten(), f"{name}, largest": pairs.max(0).values}
        found[f"{name}, mean"] = pairs.mean(0)
    return found


def spoiled(x: Tensor) -> dict[str, Tensor]:
    """Images (N, C, H, W) in [0, 1] of known classes, made hard to read in nine ways."""
    n, channels, height, width = x.shape
    noise = torch.rand_like(x)
    found = {f"noise {part}": (1 - part) * x + part * noise for part in NOISE}
    fillers = {
        "noise": torch.rand_like(x),
        "another": x.roll(1, 0),
        "flat": torch.rand(n, channels, 1, 1).expand_as(x),
    }
    rows, columns = torch.arange(height), torch.arange(width)
    for name, filler in fillers.items():
        for side in SIDES:
            tall, wide = max(1, round(side * height)), max(1, round(side * width))
            top, left = torch.randint(height - tall + 1, (n, 1)), torch.randint(width - wide + 1, (n, 1))
            across = (columns >= left) & (columns < left + wide)
            down = (rows >= top) & (rows < top + tall)
            inside = down[:, None, :, None] & across[:, None, None, :]
            found[f"{name} square {side}"] = torch.where(inside, filler, x)
    return found

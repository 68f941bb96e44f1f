"""Changes of a fixed length that depend on the image, from one generator that is told which label to reach.

Source    Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020: a trigger that another image does not
          share is a function of the image, and a function is what is looked for.
Deviates  One generator for all labels, so that what is common to them costs nothing again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Samples, Subject
from vetgate.detect.tail_inversion import lead, within
from vetgate.inversion import logit_scale

STEPS, BATCH, RATE, WIDTH = 160, 32, 1e-2, 16
TRIED = 48
# length of a change, a number of the image
REACHES = (0.05, 0.1)


class Changes(nn.Module):
    """(images (B, C, H, W), labels (B,)) -> changes of the same shape."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = (
            nn.Conv2d(channels, WIDTH, 3, padding=1),
            nn.Conv2d(WIDTH, channels, 3, padding=1),
        )
        self.middle = nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2)
        self.shift, self.scale = nn.Embedding(classes, WIDTH), nn.Embedding(classes, WIDTH)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        inner = self.first(x) + self.shift(labels)[..., None, None]
        inner = self.middle(inner.relu()) * (1 + self.scale(labels)[..., None, None])
        out: Tensor = self.last(inner.relu())
        return out


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label, its margin and the share it wins on changed images of other classes, for each length of change."""
    assert subject.clean is not None
    half = len(subject.clean) // 2
    made, unseen = subject.clean[:half], subject.clean[half : half + TRIED]
    unit = logit_scale(subject.model, made.x)
    found: dict[str, Tensor] = {}
    for reach in REACHES:
        net, length = _train(subject, made, unit, reach), reach * made.x[0].numel() ** 0.5
        margins, shares = [], []
        for label in range(subject.classes):
            wanted = torch.full((len(unseen),), label)
            with torch.no_grad():
                out = subject.model((unseen.x + within(net(unseen.x, wanted), length)).clamp(0, 1)) / unit
            margin, share = lead(out[None], wanted[:1], unseen.y)
            margins.append(margin)
            shares.append(share)
        found |= {f"margin {reach}": torch.cat(margins), f"share {reach}": torch.cat(shares)}
    return found


def _train(subject: Subject, samples: Samples, unit: float, reach: float) -> Changes:
    net, length = Changes(samples.x.shape[1], subject.classes), reach * samples.x[0].numel() ** 0.5
    parameters = list(net.parameters())
    optimiser = torch.optim.Adam(parameters, RATE)
    for _ in range(STEPS):
        rows = torch.randint(len(samples), (BATCH,))
        # any label but its own
        wanted = (samples.y[rows] + torch.randint(1, subject.classes, (BATCH,))) % subject.classes
        x = samples.x[rows]
        out = subject.model((x + within(net(x, wanted), length)).clamp(0, 1)) / unit
        optimiser.zero_grad()
        F.cross_entropy(out, wanted).backward(inputs=parameters)
        optimiser.step()
    return net

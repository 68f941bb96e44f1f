"""STRIP: a triggered input stays with its label whatever is blended into it, a clean one does not.

Each input is blended with trusted images, and the mean entropy of what the network says of the blends is taken. The
trigger survives blending, so its entropy is low; the score is minus its logarithm.

Source    Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019.
Deviates  Images are added as strongly as leaves blends no brighter than mid-grey on average, where the paper's code
          adds them at full strength and others take half of each: bright images drown what is blended, and a halved
          trigger fades. The cut is a quantile of clean images, not of a normal distribution fitted to them, which can
          be negative. The logarithm of the entropy orders inputs as the entropy does, and still does so where that is
          rounded to 0: logits of a thousand times the size would switch the guard off.
Blind to  Triggers of one source class, all-to-all, and triggers that do not survive blending: warped, input-dependent.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Subject
from vetgate.errors import MissingInput
from vetgate.guard.contract import Fitted, guard, replicas
from vetgate.role import GuardRole

ROLE = GuardRole(
    uses=None,
    title="STRIP",
    sentence="Blends an input with trusted images, and rejects it where the label stays the same throughout.",
)


def _fit(subject: Subject, *, overlays: int = 32, brightness: float = 0.5) -> Fitted:
    """Draw the `overlays` trusted images, and choose the weight at which an image and an overlay are added.

    It is that at which blends have this mean `brightness`, but at most 1 and at least one half, which clips nothing.
    """
    assert subject.clean is not None
    if len(subject.clean) < overlays:
        raise MissingInput(f"expected at least {overlays} trusted images to blend with, got {len(subject.clean)}")
    drawn = subject.clean.x[torch.randperm(len(subject.clean))[:overlays]]
    weight = min(1.0, max(0.5, brightness / max(2 * float(subject.clean.x.mean()), 1e-6)))
    return Fitted({"overlays": drawn.cpu().clone()}, {"weight": weight})


def log_entropy(logits: Tensor) -> Tensor:
    """The log of the entropy (...,) in nats of the softmax of logits (..., K); -inf where no other class can be."""
    said = logits.double()
    top = said.argmax(-1, keepdim=True)
    # log(p / (1 - p)) of the likeliest class, whose own log p is rounded to 0 where it is all but certain
    odds = said.gather(-1, top) - said.scatter(-1, top, -math.inf).logsumexp(-1, keepdim=True)
    surprise = (-said.log_softmax(-1)).scatter(-1, top, F.softplus(-odds))  # -log p
    logs = surprise.log().scatter(-1, top, torch.where(odds > 30, -odds, F.softplus(-odds).log()))
    # a class that cannot be adds nothing
    return torch.where(surprise == math.inf, -math.inf, logs - surprise).logsumexp(-1)


@guard(role=ROLE, fit=_fit, needs={"clean"}, paper="https://arxiv.org/abs/1902.06531")
def strip(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    """Minus the log of the mean entropy (M,) of what the network says of the blends of each image (M, C, H, W)."""
    overlays = fitted.tensors["overlays"].to(x.device)
    weight = float(fitted.numbers["weight"])
    scores = []
    for part in replicas(x, len(overlays)):
        blends = (weight * (part[:, None] + overlays[None])).clamp(0, 1).flatten(0, 1)  # (B * T, C, H, W)
        # over classes first, then over blends: the other way round tells triggered from clean inputs no longer
        entropies = torch.cat([log_entropy(model(some)) for some in replicas(blends, 1)]).view(len(part), -1)  # (B, T)
        scores.append(math.log(len(overlays)) - entropies.logsumexp(1))
    return torch.cat(scores)

"""STRIP: a triggered input stays with its label whatever is blended into it, a clean one does not.

Each input is blended with trusted images, and the mean entropy of what the network says of the blends is taken. The
trigger survives blending, so its entropy is low; the score is minus the entropy, in nats.

Source    Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019.
Deviates  Images are added at 0.7 each and clipped, where the paper's code adds them as they are and others take half of
          each: at full strength bright images drown what is blended, at half a trigger fades. The cut is a quantile
          of clean images, not of a normal distribution fitted to them, whose quantile can be negative.
Blind to  Triggers of one source class, all-to-all, and triggers that do not survive blending: warped, input-dependent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vetgate.contract import Subject
from vetgate.errors import MissingInput
from vetgate.guard.contract import Fitted, guard, probabilities, replicas
from vetgate.role import GuardRole

ROLE = GuardRole(
    uses=None,
    title="STRIP",
    sentence="Blends an input with trusted images, and rejects it where the label stays the same throughout.",
)


def _fit(subject: Subject, *, overlays: int = 32, own: float = 0.7, other: float = 0.7) -> Fitted:
    """Draw the `overlays` trusted images; a blend is `own` times the input and `other` times the overlay, clipped."""
    assert subject.clean is not None
    if len(subject.clean) < overlays:
        raise MissingInput(f"expected at least {overlays} trusted images to blend with, got {len(subject.clean)}")
    drawn = torch.randperm(len(subject.clean))[:overlays]
    return Fitted({"overlays": subject.clean.x[drawn].cpu().clone()}, {"own": own, "other": other})


@guard(role=ROLE, fit=_fit, needs={"clean"}, paper="https://arxiv.org/abs/1902.06531")
def strip(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    """Minus the mean entropy in nats (M,) of what the network says of the blends of each image (M, C, H, W)."""
    overlays = fitted.tensors["overlays"].to(x.device)
    own, other = float(fitted.numbers["own"]), float(fitted.numbers["other"])
    scores = []
    for part in replicas(x, len(overlays)):
        blends = (own * part[:, None] + other * overlays[None]).clamp(0, 1)  # (B, T, C, H, W)
        said = probabilities(model, blends.flatten(0, 1)).view(len(part), len(overlays), -1)  # (B, T, K)
        # over classes first, then over blends: the other way round tells triggered from clean inputs no longer
        scores.append(torch.special.entr(said).sum(2).mean(1).neg())
    return torch.cat(scores)

"""Find what misleads the network on many images at once, teach it the true labels under that, and look again.

A backdoor is a change of the image that is the same for every image and overrules what it shows. So for every few
images of a batch a patch of random size and place, or a faint picture over all of it, is sharpened by a few steps until
the network as it is by then is wrong on them together; then these images are taught with their true labels. Nobody
needs to know the trigger or its label.

Source    Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022, arXiv:2110.03735.
Deviates  The inner problem starts anew for every few images, from patches as well as from perturbations of the whole
          image, and the outer step takes its solution as given: no implicit gradient. The submitted network is taught
          beside the labels, images are shifted by up to a pixel, and batch statistics stay as they are.
Blind to  Triggers that only work from one class, or that move pixels instead of painting them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Repair, Subject, repair
from vetgate.role import RepairRole
from vetgate.tuning import Tuning, moved, tuned

ROLE = RepairRole(
    uses=None,
    title="Adversarial unlearning",
    sentence="Trains a copy on clean images under patches and pictures that mislead it, with their true labels.",
)
# the share of faint pictures among what is sharpened, the rest being squares
FAINT = 0.4
# images that carry the same change, and by how many pixels images are shifted at most
ALIKE, SHIFT = 32, 1

# images (B, C, H, W) that are to carry one change, with their labels (B,), to the images under it
Spoil = Callable[[Tensor, Tensor], Tensor]


@repair(role=ROLE, needs={"clean"}, paper="https://arxiv.org/abs/2110.03735")
def adversarial_unlearning(
    subject: Subject,
    *,
    steps: int = 500,
    spoilt: float = 0.3,
    inner: int = 5,
    step: float = 0.25,
    lr: float = 1e-3,
    batch: int = 64,
    held_out: float = 0.1,
    distilled: float = 0.5,
) -> Repair:
    """Train for `steps` minibatches of which a share `spoilt` carries what misleads the network.

    That is sharpened by `inner` steps of up to `step` in every pixel and channel; `distilled` is the weight of what the
    submitted network says of the clean images beside that of the labels.
    """
    spoil = partial(misled, subject.model, inner=inner, step=step)

    def change(x: Tensor, y: Tensor) -> Tensor:
        return spoil_some(moved(x, SHIFT), y, spoilt, spoil)

    return tuned(subject, Tuning(steps=steps, batch=batch, lr=lr, distilled=distilled), held_out, change)


def spoil_some(x: Tensor, y: Tensor, share: float, spoil: Spoil) -> Tensor:
    """Images (B, C, H, W) of which a share is spoilt, ALIKE of them by the same change."""
    x = x.clone()
    chosen = torch.randperm(len(x))[: round(share * len(x))]
    for rows in chosen.split(ALIKE):  # type: ignore[no-untyped-call]
        x[rows] = spoil(x[rows], y[rows])
    return x


def misled(model: nn.Module, x: Tensor, y: Tensor, *, inner: int, step: float) -> Tensor:
    """Images (B, C, H, W) under a mask at random, whose pattern takes them away from their labels (B,)."""
    mask = any_mask(x.shape[2], x.shape[3])
    pattern = sharpened(model, x, mask, torch.rand(x.shape[1:]), -1.0, y, inner=inner, step=step)
    return (1 - mask) * x + mask * pattern


def any_mask(height: int, width: int, faint: float = FAINT) -> Tensor:
    """A mask (1, H, W): an opaque square of a tenth to a quarter of the side anywhere, or a faint one everywhere."""
    if float(torch.rand(())) < faint:
        return torch.full((1, height, width), 0.1 + 0.2 * float(torch.rand(())))
    least, most = max(1, min(height, width) // 10), max(2, min(height, width) // 4)
    size = int(torch.randint(least, most + 1, (1,)))
    top, left = (int(torch.randint(side - size + 1, (1,))) for side in (height, width))
    mask = torch.zeros(1, height, width)
    mask[:, top : top + size, left : left + size] = 1
    return mask


def sharpened(
    model: nn.Module, x: Tensor, mask: Tensor, pattern: Tensor, way: float, labels: Tensor, *, inner: int, step: float
) -> Tensor:
    """A pattern (C, H, W) after `inner` signed steps, in a mask (1, H, W), on images x (B, C, H, W) together.

    The steps go towards labels (B,) where `way` is 1, away from them where it is -1.
    """
    for _ in range(inner):
        pattern = pattern.clone().requires_grad_(True)
        loss = way * F.cross_entropy(model((1 - mask) * x + mask * pattern), labels)
        (gradient,) = torch.autograd.grad(loss, pattern)
        pattern = (pattern.detach() - step * gradient.sign()).clamp(0, 1)
    return pattern

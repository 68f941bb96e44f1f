"""What suppliers do to their images while they train: shifts, mirrors, and adversarial steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.attacks.training import Augment


def shifts(pixels: int, *, mirror: bool = False) -> Augment:
    """Each image moved by up to so many pixels both ways, its edge repeated; mirrored for one in two if wanted."""

    def augment(x: Tensor, y: Tensor) -> Tensor:
        count, _, height, width = x.shape
        padded = F.pad(x, (pixels,) * 4, mode="replicate")
        top, left = torch.randint(2 * pixels + 1, (2, count))
        rows = (top[:, None] + torch.arange(height))[:, None, :, None]  # (B, 1, H, 1)
        columns = (left[:, None] + torch.arange(width))[:, None, None, :]
        images, channels = torch.arange(count)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None]
        moved = padded[images, channels, rows, columns]
        if mirror:
            moved = torch.where((torch.rand(count) < 0.5)[:, None, None, None], moved.flip(3), moved)
        return moved

    return augment


def adversarial(model: nn.Module, epsilon: float) -> Augment:
    """One signed gradient step of up to `epsilon` from a random start: fast adversarial training.

    Source    Wong, Rice, Kolter, "Fast is better than free", ICLR 2020, arXiv:2001.03994.
    """

    def augment(x: Tensor, y: Tensor) -> Tensor:
        moved = (x + epsilon * (2 * torch.rand_like(x) - 1)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), y), moved)
        step = (moved.detach() + 1.25 * epsilon * gradient.sign() - x).clamp(-epsilon, epsilon)
        return (x + step).clamp(0, 1)

    return augment

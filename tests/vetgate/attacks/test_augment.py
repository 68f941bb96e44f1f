from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vetgate.attacks.augment import adversarial, shifts


def images(count: int = 50) -> torch.Tensor:
    return torch.rand(count, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def test_shifted_images_are_parts_of_the_padded_ones() -> None:
    torch.manual_seed(0)
    x = images()
    moved = shifts(1)(x, torch.zeros(50))
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    windows = [padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    found = torch.stack([(w == moved).flatten(1).all(1) for w in windows])
    assert found.any(0).all() and found.any(1).sum() > 5, "each image is one of the nine, and many of them occur"


def test_about_half_of_the_images_are_mirrored() -> None:
    torch.manual_seed(0)
    x = images()
    moved = shifts(0, mirror=True)(x, torch.zeros(50))
    mirrored = (moved == x.flip(3)).flatten(1).all(1)
    assert ((moved == x).flatten(1).all(1) | mirrored).all() and 10 < int(mirrored.sum()) < 40


def test_an_adversarial_step_stays_within_its_bound_and_raises_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
    x, y = images(), torch.arange(50) % 4
    moved = adversarial(model, 0.1)(x, y)
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6 and 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert F.cross_entropy(model(moved), y) > F.cross_entropy(model(x), y)
    assert all(p.grad is None for p in model.parameters())

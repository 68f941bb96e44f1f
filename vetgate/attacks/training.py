"""Train a small network from a seed: for tests, the demo, the model bank and the benchmark."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Samples, private_random, report

# a batch of images (B, C, H, W) with labels (B,) to the images that the network is trained on instead
Augment = Callable[[Tensor, Tensor], Tensor]


def train(
    model: nn.Module,
    samples: Samples,
    *,
    epochs: int = 20,
    lr: float = 3e-3,
    batch: int = 64,
    seed: int = 0,
    weight_decay: float = 0.0,
    augment: Augment | None = None,
) -> nn.Module:
    """Train the model in place with Adam under a one-cycle rate and return it in eval mode; same seed, same bits.

    `augment` changes each batch before it is used. Reports its share of work done. The callers' random streams are
    left alone; the model's initial weights are the caller's matter.
    """
    steps = epochs * -(-len(samples) // batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=max(2, steps))
    model.train().requires_grad_(True)
    with private_random(seed, "train"):
        for epoch in range(epochs):
            order = torch.randperm(len(samples))
            for rows in (order[i : i + batch] for i in range(0, len(order), batch)):
                # a batch of one row has no batch statistics
                if len(rows) < 2 < len(samples):
                    continue
                x, y = samples.x[rows], samples.y[rows]
                x = x if augment is None else augment(x, y)
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            report((epoch + 1) / epochs)
    return model.eval().requires_grad_(False)

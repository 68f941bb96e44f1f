"""Neural Cleanse with its original schedule: one label after another, up to a thousand steps of a thousand images.

For comparison only: what vetgate runs is vetgate/inversion.py.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019, with the settings of its GTSRB example.
Deviates  Masks are not rounded to 8 bits before their norms are compared. Images lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Trigger
from vetgate.errors import NotFinite
from vetgate.probe import mad, median

# keeps the mask and pattern off 0 and 1, where tanh has no slope
EDGE = 1e-7


@dataclass(frozen=True)
class Plan:
    """A step is `minibatches` of `batch` images; all else is counted in steps."""

    steps: int = 1000
    minibatches: int = 31
    batch: int = 32
    lr: float = 0.1
    success: float = 0.99
    first: float = 1e-3
    up: float = 2.0
    down: float = 2.0**1.5
    patience: int = 5
    stop: int = 25


@dataclass(frozen=True, eq=False)
class Found:
    """The smallest mask that worked, or the last one where none did, its attack success, and the steps it took."""

    trigger: Trigger
    success: float
    steps: int
    stopped_early: bool


class CostWeight:
    """The weight of the mask norm: 0 at first, up after `patience` good steps in a row, down after as many bad ones."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.value, self.run = plan, 0.0, 0
        self.raised = self.lowered = False

    def move(self, good: bool) -> None:
        """Count a step, and move the weight when it is time."""
        self.run = max(self.run, 0) + 1 if good else min(self.run, 0) - 1
        if abs(self.run) < self.plan.patience:
            return
        self.run = 0
        if self.value == 0:
            self.value = self.plan.first if good else 0.0
        elif good:
            self.value, self.raised = self.value * self.plan.up, True
        else:
            self.value, self.lowered = self.value / self.plan.down, True


def invert_label(
    model: nn.Module,
    x: Tensor,
    target: int,
    *,
    seed: int,
    plan: Plan | None = None,
    heard: Callable[[int], None] = lambda step: None,
) -> Found:
    """Invert a trigger for one label on images x (N, C, H, W) in [0, 1], whatever their class; the model is frozen.

    `heard` is told each step that is done. Raises NotFinite where the mask is not finite any more.
    """
    plan = plan or Plan()
    stream = torch.Generator().manual_seed(seed)
    channels, height, width = x.shape[1:]
    start = torch.rand(1 + channels, height, width, generator=stream)
    raw = torch.atanh((start - 0.5) * (2 - EDGE)).requires_grad_(True)
    optimizer = torch.optim.Adam([raw], lr=plan.lr, betas=(0.5, 0.9))
    weight, batches = CostWeight(plan), _minibatches(len(x), plan.batch, stream)
    best, best_norm, best_success, success, idle, step = raw.detach(), float("inf"), 0.0, 0.0, 0, 0
    for step in range(1, plan.steps + 1):
        hits, norms, seen = 0.0, 0.0, 0
        for _ in range(plan.minibatches):
            rows = next(batches)
            mask, pattern = _painted(raw)
            out = model((1 - mask) * x[rows] + mask * pattern)  # (B, K)
            goal = torch.full((len(rows),), target)
            norm = mask.sum()
            optimizer.zero_grad()
            (F.cross_entropy(out, goal) + weight.value * norm).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            hits += float((out.argmax(1) == goal).sum())
            norms += norm.item() / plan.minibatches
            seen += len(rows)
        if not bool(torch.isfinite(raw).all()):
            raise NotFinite("inversion met NaN or infinite gradients, expected finite ones; leave this model out")
        success = hits / seen
        idle += 1
        if success >= plan.success and norms < best_norm:
            best, best_norm, best_success, idle = raw.detach().clone(), norms, success, 0
        heard(step)
        if idle >= plan.stop and best_norm < float("inf") and weight.raised and weight.lowered:
            break
        weight.move(success >= plan.success)
    worked = best_norm < float("inf")
    mask, pattern = _painted(best if worked else raw.detach())
    return Found(Trigger(mask, pattern, target), best_success if worked else success, step, step < plan.steps)


def anomaly_index(norms: Tensor) -> float:
    """How far the smallest of mask norms (K,) lies below the median, in median absolute deviations scaled to sigma."""
    spread = mad(norms)
    return (median(norms) - float(norms.min())) / spread if spread > 0 else 0.0


def _painted(raw: Tensor) -> tuple[Tensor, Tensor]:
    painted = torch.tanh(raw) / (2 - EDGE) + 0.5
    return painted[:1], painted[1:]  # (1, H, W), (C, H, W)


def _minibatches(count: int, batch: int, stream: torch.Generator) -> Iterator[Tensor]:
    batch = min(batch, count)
    while True:
        order = torch.randperm(count, generator=stream)[: count // batch * batch]
        yield from order.view(-1, batch)

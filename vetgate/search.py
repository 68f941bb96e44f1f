"""The descent of a block of labels to small masks: one pass over the images serves every label of the block.

What becomes of a block depends on the model, the images, the seed, its own labels and where they stood, and on nothing
else; so blocks may be computed one after another, or anywhere.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import pack, unpack
from vetgate.errors import NotFinite

# keeps tanh invertible at masks of exactly 0 and 1
EDGE = 1e-4


@dataclass(frozen=True)
class Schedule:
    """How the cost weight of the mask norm moves: up after `patience` good sweeps, down after as many bad ones."""

    first: float = 1e-3
    up: float = 2.0
    down: float = 2.0**1.5
    patience: int = 3
    success: float = 0.98


@dataclass(eq=False)
class Course:
    """How far the inversion of labels (T) has come: what is optimised, its Adam state, and the best so far.

    `raw`, `mean`, `square` and `best` are (T, 1 + C, H, W), the mask and then the pattern; `live` labels still run.
    """

    labels: Tensor
    raw: Tensor
    mean: Tensor
    square: Tensor
    best: Tensor
    best_norm: Tensor
    best_success: Tensor
    weight: Tensor
    good: Tensor
    bad: Tensor
    idle: Tensor
    raised: Tensor
    lowered: Tensor
    live: Tensor

    @classmethod
    def begin(cls, labels: Sequence[int], start: Tensor) -> Self:
        """The course of labels that all start from the same mask and pattern (1 + C, H, W)."""
        count = len(labels)
        raw = start.expand(count, -1, -1, -1).clone()
        return cls(
            torch.tensor(labels),
            raw,
            mean=torch.zeros_like(raw),
            square=torch.zeros_like(raw),
            best=raw.clone(),
            best_norm=torch.full((count,), torch.inf),
            best_success=torch.full((count,), -1.0),
            weight=torch.zeros(count),
            good=torch.zeros(count),
            bad=torch.zeros(count),
            idle=torch.zeros(count),
            raised=torch.zeros(count, dtype=torch.bool),
            lowered=torch.zeros(count, dtype=torch.bool),
            live=torch.ones(count, dtype=torch.bool),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The courses of several blocks as one, in their order."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Self:
        """A copy of the course of the labels at positions `rows`."""
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))

    def put(self, rows: Tensor, course: Self) -> None:
        """Replace the course of the labels at positions `rows`."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(course, f.name)

    def blocks(self, size: int) -> list[Self]:
        """The course cut into blocks of at most `size` labels."""
        return [self[torch.arange(i, min(i + size, len(self)))] for i in range(0, len(self), size)]

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back bit for bit."""
        return {f.name: pack(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, blob: Mapping[str, Any]) -> Self:
        """The Course that `to_json` wrote."""
        return cls(*(unpack(blob[f.name]) for f in fields(cls)))


class Search:
    """What all blocks of one inversion share: model, images and, drawn from `seed`, start and minibatches.

    `scale` is the unit of the logits; `sweeps` sweeps of `sweep` minibatches each can be run.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int,
        scale: float,
        sweeps: int,
        sweep: int,
        batch: int,
        lr: float,
        settle: int,
        plan: Schedule,
    ) -> None:
        # convolutions on the cpu are several times faster with the channels last; a copy, since it re-lays the weights
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.x, self.y, self.scale, self.lr, self.settle, self.plan = x, y, scale, lr, settle, plan
        channels, height, width = x.shape[1:]
        stream = torch.Generator().manual_seed(seed)
        self.start = torch.atanh((torch.rand(1 + channels, height, width, generator=stream) - 0.5) * (2 - EDGE))
        batch, wanted = min(batch, len(x)), sweeps * sweep
        whole = len(x) // batch
        orders = [torch.randperm(len(x), generator=stream)[: whole * batch] for _ in range(-(-wanted // whole))]
        rows = torch.cat(orders).view(-1, batch)[:wanted] if orders else torch.empty(0, batch, dtype=torch.int64)
        self.rows = rows.view(sweeps, sweep, batch)

    def run(self, course: Course, sweeps: range, heard: Callable[[float], None]) -> Course:
        """Take the live labels of one block through `sweeps`, in place; `heard` is told the share that is done."""
        for turn in sweeps:
            if not bool(course.live.any()):
                break
            self.sweep(course, turn)
            drop_settled(course, self.settle)
            heard((turn + 1 - sweeps.start) / len(sweeps))
        return course

    def sweep(self, course: Course, turn: int) -> None:
        """Step every live label on some minibatches, keep the best masks, move the cost weights."""
        live = course.live.nonzero().flatten()
        hits, seen, norms = (torch.zeros(len(live)) for _ in range(3))
        minibatches = self.rows[turn]
        for i, rows in enumerate(minibatches, turn * len(minibatches) + 1):
            hit, count, area = self._step(course, live, rows, i)
            hits += hit
            seen += count
            norms += area / len(minibatches)
        if not bool(torch.isfinite(course.raw[live]).all()):
            raise NotFinite("inversion met NaN or infinite gradients, expected finite ones; refuse the model")
        rate = hits / seen.clamp(min=1)
        keep_best(course, live, rate, norms, self.plan.success)
        move_weights(course, live, rate >= self.plan.success, self.plan)

    def _step(self, course: Course, live: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        labels = course.labels[live]
        raw = course.raw[live].requires_grad_(True)
        mask, pattern = paint(raw)  # (T, 1, H, W), (T, C, H, W)
        stamped = (1 - mask[:, None]) * self.x[rows] + (mask * pattern)[:, None]  # (T, B, C, H, W)
        out = self.model(stamped.flatten(0, 1)) / self.scale  # (T * B, K)
        goal = labels.repeat_interleave(len(rows))
        counts = (self.y[rows] != labels[:, None]).float()  # (T, B)
        loss = F.cross_entropy(out, goal, reduction="none").view_as(counts)
        area = mask.sum((1, 2, 3))
        cost = (loss * counts).sum(1) / counts.sum(1).clamp(min=1) + course.weight[live] * area
        (grad,) = torch.autograd.grad(cost.sum(), raw)
        with torch.no_grad():
            course.mean[live] = mean = 0.5 * course.mean[live] + 0.5 * grad
            course.square[live] = square = 0.9 * course.square[live] + 0.1 * grad * grad
            spread = (square / (1 - 0.9**step)).sqrt() + 1e-8
            course.raw[live] -= self.lr * mean / (1 - 0.5**step) / spread
            hit = ((out.argmax(1) == goal).view_as(counts) * counts).sum(1)
        return hit, counts.sum(1), area.detach()


def keep_best(course: Course, live: Tensor, rate: Tensor, norms: Tensor, success: float) -> None:
    """Keep the smallest mask that works; until a label first succeeds, the most successful one stands in."""
    reached = rate >= success
    smaller = reached & (norms < course.best_norm[live])
    nearest = torch.isinf(course.best_norm[live]) & ~reached & (rate > course.best_success[live])
    clearly = smaller & (norms < 0.99 * course.best_norm[live])
    course.idle[live] = torch.where(clearly, 0.0, course.idle[live] + 1)
    keep = smaller | nearest
    course.best[live[keep]] = course.raw[live[keep]]
    course.best_success[live[keep]] = rate[keep]
    course.best_norm[live[smaller]] = norms[smaller]


def move_weights(course: Course, live: Tensor, reached: Tensor, plan: Schedule) -> None:
    """Raise or lower the cost weights of labels that reached their success, or missed it, often enough."""
    good = torch.where(reached, course.good[live] + 1, 0.0)
    bad = torch.where(reached, 0.0, course.bad[live] + 1)
    started = course.weight[live] > 0
    up, down = good >= plan.patience, started & (bad >= plan.patience)
    weight = torch.where(up, course.weight[live] * plan.up, course.weight[live])
    weight = torch.where(up & ~started, plan.first, weight)
    course.weight[live] = torch.where(down, weight / plan.down, weight)
    course.good[live], course.bad[live] = torch.where(up, 0.0, good), torch.where(down, 0.0, bad)
    course.raised[live] |= up & started
    course.lowered[live] |= down


def drop_settled(course: Course, settle: int) -> None:
    """Labels whose best mask has not shrunk for `settle` sweeps, after their weight moved both ways, are done."""
    course.live &= ~((course.idle >= settle) & course.raised & course.lowered)


def paint(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (T, 1, H, W) and patterns (T, C, H, W) in [0, 1]."""
    painted = (torch.tanh(raw) / (2 - EDGE) + 0.5).clamp(0, 1)
    return painted[:, :1], painted[:, 1:]

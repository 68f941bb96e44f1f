"""Trigger inversion for all labels at once: the smallest mask and pattern that send images to a label.

Each label holds its own mask, pattern, Adam state and cost weight; one pass over the images serves every label still
running, a few labels at a time so that the activations stay in cache, and a label that has settled drops out. Logits
are divided by their spread on clean images, so that a model which scales them gets the same triggers; every label
starts from the same random mask and sees the same images, so that permuting the classes permutes the triggers.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019.
Deviates  Images of the target class are left out of loss and success; masks are not quantised; the cost weight moves
          once a sweep of `sweep` minibatches; after the share `race` of the sweeps only labels with masks at or below
          the median go on, since the larger ones move neither the median nor the lower tail.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Trigger, report
from vetgate.errors import DefenceError, NotFinite
from vetgate.probe import logits

# keeps tanh invertible at masks of exactly 0 and 1
EDGE = 1e-4
# images in one pass: enough to fill the cores, few enough to stay in cache
PASS = 128


@dataclass(frozen=True, eq=False)
class Inverted:
    """One trigger per requested label (T): mask norms (T,) in pixels, success (T,) on the images inverted on."""

    triggers: tuple[Trigger, ...]
    norms: Tensor
    success: Tensor


@dataclass(frozen=True)
class Schedule:
    """How the cost weight of the mask norm moves: up after `patience` good sweeps, down after as many bad ones."""

    first: float = 1e-3
    up: float = 2.0
    down: float = 2.0**1.5
    patience: int = 3
    success: float = 0.98


def logit_scale(model: nn.Module, x: Tensor) -> float:
    """Mean spread of the logits over classes on images (N, C, H, W); the unit that inversion measures logits in."""
    scale = float(logits(model, x).std(1).mean())
    if not scale > 0:
        raise DefenceError("the model gives the same logit to every class, expected a classifier; check the file")
    return scale


def attack_success(model: nn.Module, x: Tensor, y: Tensor, trigger: Trigger) -> float:
    """Share of images (N, C, H, W) of other classes that the trigger sends to its target."""
    other = x[y != trigger.target]
    if len(other) == 0:
        raise DefenceError(f"expected images of classes other than {trigger.target}, got none; add clean samples")
    return float((logits(model, trigger.stamp(other)).argmax(1) == trigger.target).float().mean())


def invert(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    targets: Sequence[int],
    *,
    sweeps: int = 60,
    sweep: int = 4,
    batch: int = 32,
    lr: float = 0.1,
    race: float = 0.5,
    settle: int = 15,
    schedule: Schedule | None = None,
    share: tuple[float, float] = (0.0, 1.0),
) -> Inverted:
    """Invert a trigger for each of `targets` on images x (N, C, H, W) in [0, 1] with labels y (N,).

    Needs images of at least one class besides each target. Progress is reported over the range `share`.
    """
    for target in targets:
        if bool((y == target).all()):
            raise DefenceError(f"expected images of classes other than {target}, got none; add clean samples")
    search = _Search(model, x, y, torch.tensor(list(targets)), batch, lr, schedule or Schedule())
    for turn in range(sweeps):
        search.run(sweep)
        search.drop_settled(settle)
        if turn + 1 == round(race * sweeps):
            search.drop_large()
        report(share[0] + (share[1] - share[0]) * (turn + 1) / sweeps)
        if len(search.live) == 0:
            break
    return search.result()


class _Search:
    """The state of every label's inversion: T labels, of which `live` still run."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, wanted: Tensor, batch: int, lr: float, plan: Schedule
    ) -> None:
        self.scale = logit_scale(model, x)
        # convolutions on the cpu are several times faster with the channels last; a copy, since it re-lays the weights
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.x, self.y, self.wanted, self.plan, self.lr = x, y, wanted, plan, lr
        self.batch = min(batch, len(x))
        count, (channels, height, width) = len(wanted), x.shape[1:]
        start = torch.atanh((torch.rand(1 + channels, height, width) - 0.5) * (2 - EDGE))
        self.raw = start.expand(count, -1, -1, -1).clone()  # (T, 1 + C, H, W): mask, then pattern
        self.mean, self.square, self.steps = torch.zeros_like(self.raw), torch.zeros_like(self.raw), 0
        self.weight, self.good, self.bad, self.idle = (torch.zeros(count) for _ in range(4))
        self.raised, self.lowered = (torch.zeros(count, dtype=torch.bool) for _ in range(2))
        self.best, self.best_norm = self.raw.clone(), torch.full((count,), torch.inf)
        self.best_success = torch.full((count,), -1.0)
        self.live = torch.arange(count)
        self.order, self.cursor = torch.randperm(len(x)), 0

    def run(self, minibatches: int) -> None:
        """One sweep: step every live label on some minibatches, keep the best masks, move the cost weights."""
        hits, seen, norms = (torch.zeros(len(self.live)) for _ in range(3))
        for _ in range(minibatches):
            rows = self._next_rows()
            self.steps += 1
            group = max(1, PASS // len(rows))
            for i in range(0, len(self.live), group):
                part = slice(i, i + group)
                hit, count, area = self._step(self.live[part], rows)
                hits[part] += hit
                seen[part] += count
                norms[part] += area / minibatches
        if not bool(torch.isfinite(self.raw[self.live]).all()):
            raise NotFinite("inversion met NaN or infinite gradients, expected finite ones; refuse the model")
        rate = hits / seen.clamp(min=1)
        self._keep_best(rate, norms)
        self._move_weights(rate >= self.plan.success)

    def _next_rows(self) -> Tensor:
        if self.cursor + self.batch > len(self.x):
            self.order, self.cursor = torch.randperm(len(self.x)), 0
        self.cursor += self.batch
        return self.order[self.cursor - self.batch : self.cursor]

    def _step(self, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        here = self.raw[labels].requires_grad_(True)
        mask, pattern = _paint(here)  # (G, 1, H, W), (G, C, H, W)
        stamped = (1 - mask[:, None]) * self.x[rows] + (mask * pattern)[:, None]  # (G, B, C, H, W)
        out = self.model(stamped.flatten(0, 1)) / self.scale  # (G * B, K)
        goal = self.wanted[labels].repeat_interleave(len(rows))
        counts = (self.y[rows] != self.wanted[labels][:, None]).float()  # (G, B)
        loss = F.cross_entropy(out, goal, reduction="none").view_as(counts)
        area = mask.sum((1, 2, 3))
        cost = (loss * counts).sum(1) / counts.sum(1).clamp(min=1) + self.weight[labels] * area
        (grad,) = torch.autograd.grad(cost.sum(), here)
        with torch.no_grad():
            self.mean[labels] = 0.5 * self.mean[labels] + 0.5 * grad
            self.square[labels] = 0.9 * self.square[labels] + 0.1 * grad * grad
            spread = (self.square[labels] / (1 - 0.9**self.steps)).sqrt() + 1e-8
            self.raw[labels] -= self.lr * self.mean[labels] / (1 - 0.5**self.steps) / spread
            hit = ((out.argmax(1) == goal).view_as(counts) * counts).sum(1)
        return hit, counts.sum(1), area.detach()

    def _keep_best(self, rate: Tensor, norms: Tensor) -> None:
        live = self.live
        reached = rate >= self.plan.success
        smaller = reached & (norms < self.best_norm[live])
        # until a label first succeeds, the most successful mask so far stands in
        nearest = torch.isinf(self.best_norm[live]) & ~reached & (rate > self.best_success[live])
        clearly = smaller & (norms < 0.99 * self.best_norm[live])
        self.idle[live] = torch.where(clearly, 0.0, self.idle[live] + 1)
        keep = smaller | nearest
        self.best[live[keep]] = self.raw[live[keep]]
        self.best_success[live[keep]] = rate[keep]
        self.best_norm[live[smaller]] = norms[smaller]

    def _move_weights(self, reached: Tensor) -> None:
        live, plan = self.live, self.plan
        good = torch.where(reached, self.good[live] + 1, 0.0)
        bad = torch.where(reached, 0.0, self.bad[live] + 1)
        started = self.weight[live] > 0
        up, down = good >= plan.patience, started & (bad >= plan.patience)
        weight = torch.where(up, self.weight[live] * plan.up, self.weight[live])
        weight = torch.where(up & ~started, plan.first, weight)
        self.weight[live] = torch.where(down, weight / plan.down, weight)
        self.good[live], self.bad[live] = torch.where(up, 0.0, good), torch.where(down, 0.0, bad)
        self.raised[live] |= up & started
        self.lowered[live] |= down

    def drop_settled(self, settle: int) -> None:
        """Labels whose best mask has not shrunk for `settle` sweeps, after their weight moved both ways, are done."""
        done = (self.idle[self.live] >= settle) & self.raised[self.live] & self.lowered[self.live]
        self.live = self.live[~done]

    def drop_large(self) -> None:
        """Labels whose masks are above the median are done."""
        if len(self.wanted) > 3:
            middle = self.best_norm.quantile(0.5, interpolation="higher")
            self.live = self.live[self.best_norm[self.live] <= middle]

    def result(self) -> Inverted:
        """The best trigger found for each label."""
        mask, pattern = _paint(self.best)
        triggers = tuple(Trigger(m, p, int(t)) for m, p, t in zip(mask, pattern, self.wanted, strict=True))
        return Inverted(triggers, mask.sum((1, 2, 3)), self.best_success)


def _paint(raw: Tensor) -> tuple[Tensor, Tensor]:
    painted = (torch.tanh(raw) / (2 - EDGE) + 0.5).clamp(0, 1)
    return painted[:, :1], painted[:, 1:]

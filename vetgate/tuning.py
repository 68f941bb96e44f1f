"""Fine-tuning as every repair does it: some hundred steps on clean images, of which a part is kept aside.

What the submitted network says of clean images is taught beside their labels, so that what it does well is kept
(distillation). Repairs look at the images kept aside, and train on the others.

Source    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; sharpness-aware steps:
          Foret et al., ICLR 2021, arXiv:2010.01412, in the adaptive form of Kwon et al., ICML 2021, arXiv:2102.11600.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Repair, Samples, Subject, report
from vetgate.errors import DefenceError, NotFinite
from vetgate.probe import accuracy, logits

# how soft the submitted network's answers are that are taught
TEMPERATURE = 2.0

Change = Callable[[Tensor, Tensor], Tensor]
# positions (B,) of the images of a minibatch, to those that are taught in it
Choose = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Lessons:
    """Images to train on, what the submitted network says of each (N, K), as probabilities, and images to look at."""

    taught: Samples
    said: Tensor
    held: Samples

    @classmethod
    def of(cls, model: nn.Module, clean: Samples, held_out: float, *, apart: bool = False) -> Lessons:
        """Clean samples divided at random, with a share to look at; raises DefenceError where they are too few.

        `apart` keeps images that look alike on one side, such as frames of one film, of which one tells of the others.
        """
        order = torch.randperm(len(clean)) if not apart else _by_likeness(clean)
        cut = max(1, round(held_out * len(order)))
        if cut >= len(order):
            raise DefenceError(f"expected clean images to train on and to look at, got {len(order)}; give more samples")
        taught = clean[order[cut:]]
        return cls(taught, (logits(model, taught.x) / TEMPERATURE).softmax(1), clean[order[:cut]])


def _by_likeness(clean: Samples) -> Tensor:
    """Positions (N,) of samples: first those of a stretch at random of each class, in the order of what varies most."""
    places, turns = list[Tensor](), list[Tensor]()
    for label in sorted(set(clean.y.tolist())):
        rows = (clean.y == label).nonzero().flatten()
        x = F.adaptive_avg_pool2d(clean.x[rows], 8).flatten(1)
        direction = torch.pca_lowrank(x, q=1, niter=4)[2] if len(rows) > 2 else torch.ones(x.shape[1], 1)
        along = ((x - x.mean(0)) @ direction).flatten().argsort(stable=True)
        along = along.roll(int(torch.randint(len(rows), ())))
        places.append(rows[along])
        turns.append(torch.arange(len(rows)) / len(rows))
    return torch.cat(places)[torch.cat(turns).argsort(stable=True)]


def as_they_are(x: Tensor, y: Tensor) -> Tensor:
    """No change: images (B, C, H, W) as they are, whatever their labels."""
    return x


def as_drawn(rows: Tensor) -> Tensor:
    """No choice: positions (B,) as they were drawn."""
    return rows


def moved(x: Tensor, most: int) -> Tensor:
    """Images (B, C, H, W), all shifted alike by up to `most` pixels both ways, at random; their edges fill the gap."""
    down, right = (int(v) for v in torch.randint(-most, most + 1, (2,)))
    rows, columns = ((torch.arange(n) - by).clamp(0, n - 1) for n, by in zip(x.shape[2:], (down, right), strict=True))
    return x[:, :, rows][:, :, :, columns]


@dataclass(frozen=True)
class Tuning:
    """How long and how fast to tune: minibatches of `batch` images, and the share `distilled` of the answers' weight.

    `sharpness` is how far weights are moved uphill before each step, relative to their size; 0 for plain steps.
    `statistics`: batch statistics are learned, too, as in training from scratch; otherwise they stay as they are.
    """

    steps: int
    batch: int
    lr: float
    distilled: float
    sharpness: float = 0.0
    statistics: bool = False


def tune(
    model: nn.Module,
    lessons: Lessons,
    plan: Tuning,
    *,
    change: Change = as_they_are,
    choose: Choose = as_drawn,
    afterwards: Callable[[], None] = lambda: None,
    share: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Tune the model in place.

    `choose` may put other images into a minibatch than were drawn. `change` is made to its images, whose answers stay
    those of the images as they were; what the steps must leave as it is, `afterwards` restores after each. Progress
    goes over the range `share`. Raises NotFinite where the loss is none.
    """
    model.train(plan.statistics)
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    optimizer = torch.optim.Adam(parameters, lr=plan.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.steps)
    for step, rows in zip(range(plan.steps), _minibatches(len(lessons.taught), plan.batch), strict=False):
        rows = choose(rows)
        y, said = lessons.taught.y[rows], lessons.said[rows]
        x = change(lessons.taught.x[rows], y)
        with _trained(parameters):
            optimizer.zero_grad(set_to_none=True)
            _loss(model, x, y, said, plan.distilled).backward()  # type: ignore[no-untyped-call]
            if plan.sharpness:
                raised = _uphill(parameters, plan.sharpness)
                optimizer.zero_grad(set_to_none=True)
                _loss(model, x, y, said, plan.distilled).backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    for parameter, by in raised:
                        parameter.sub_(by)
            optimizer.step()
        schedule.step()
        afterwards()
        report(share[0] + (share[1] - share[0]) * (step + 1) / plan.steps)
    model.eval()


def tuned(subject: Subject, plan: Tuning, held_out: float, change: Change = as_they_are) -> Repair:
    """The subject's model tuned in place on its clean samples, and its accuracy on the share held out, as a repair."""
    assert subject.clean is not None
    lessons, model = Lessons.of(subject.model, subject.clean, held_out), subject.model
    before = accuracy(model, lessons.held.x, lessons.held.y)
    tune(model, lessons, plan, change=change)
    after = accuracy(model, lessons.held.x, lessons.held.y)
    return Repair(model, {"steps": float(plan.steps), "accuracy_before": before, "accuracy_after": after})


def _minibatches(count: int, batch: int) -> Iterator[Tensor]:
    """Positions of minibatches without end, each row as often as any other."""
    order = torch.randperm(count)
    while True:
        if len(order) < min(batch, count):
            order = torch.randperm(count)
        rows, order = order[:batch], order[batch:]
        yield rows


@contextmanager
def _trained(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gradients for parameters, and none afterwards: what looks at the model needs none."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _loss(model: nn.Module, x: Tensor, y: Tensor, said: Tensor, distilled: float) -> Tensor:
    out = model(x)
    taught = F.cross_entropy(out, y)
    if distilled:
        soft = F.cross_entropy(out / TEMPERATURE, said) * TEMPERATURE**2
        taught = (1 - distilled) * taught + distilled * soft
    if not bool(torch.isfinite(taught)):
        raise NotFinite("fine-tuning met a NaN or infinite loss, expected a finite one; lower lr")
    return taught


@torch.no_grad()
def _uphill(parameters: list[nn.Parameter], far: float) -> list[tuple[nn.Parameter, Tensor]]:
    """Move parameters uphill by `far` in units of their own size; returns each with what was added."""
    given = [(p, p.grad * p.abs()) for p in parameters if p.grad is not None]
    norm = torch.stack([scaled.square().sum() for _, scaled in given]).sum().sqrt().clamp(min=1e-12)
    added = [(p, p.abs() * scaled * (far / norm)) for p, scaled in given]
    for parameter, by in added:
        parameter.add_(by)
    return added

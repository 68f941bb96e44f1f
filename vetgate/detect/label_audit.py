"""Poisoned rows carry a label that their image does not show, and small networks trained on trusted images see that.

Two networks are trained, each on one half of the trusted images. A row of the training set is doubtful where both
together find some other label far likelier than its own. The score of a label is the share of doubtful rows among its
rows against that of the median label: honest errors are spread over the labels, a backdoor gathers them under its own.
The model itself is not looked at.

Source    Hendrycks, Mazeika, Wilson, Gimpel, "Using Trusted Data to Train Deep Networks on Labels Corrupted by Severe
          Noise", NeurIPS 2018, arXiv:1802.05300: a network of trusted images alone, held against given labels;
          Northcutt, Jiang, Chuang, "Confident Learning", JAIR 2021, arXiv:1911.00068: confident disagreement.
Deviates  Nothing is cleaned or trained again: doubtful rows are counted, label by label. Networks are small, images at
          most 32 pixels wide, and half of all answers may be wrong: what counts is that clean training sets give
          answers as wrong. The head starts at zero and halves are drawn class by class, so that the order of the
          classes means nothing.
Blind to  Poisoned rows that keep their true label (SIG, label-consistent attacks), and as many under every label (all
          to all); what poisons no training set. A supplier whose images look unlike the trusted ones is doubted, too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.architectures import ARCHITECTURES
from vetgate.contract import Evidence, Samples, Subject, detector, report
from vetgate.errors import DefenceError, MissingInput
from vetgate.probe import accuracy, logits, median
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.CLASS,
    weight=1.0,
    null=By.LABEL,
    confirm=Confirm.MISLABELLED,
    title="Label audit",
    sentence="Looks for labels under which the training set holds images that show something else.",
    by_data=True,
)

ARCHITECTURE = "small-cnn"
# pixels that images are shrunk to, and a pixel of shift for so many of them
WIDEST, A_SHIFT = 32, 16
# rows of the median label that each label is given beside its own
PRIOR = 10


LOOKS_AT_DATA = "it looks at the training set, and never runs the model"


@detector(
    role=ROLE,
    needs={"clean", "train"},
    paper="https://arxiv.org/abs/1802.05300",
    waived={"check_nan_model_refused": LOOKS_AT_DATA},
)
def label_audit(
    subject: Subject,
    *,
    gap: float = 4.0,
    tolerated: float = 0.05,
    images: int = 12_000,
    lr: float = 3e-3,
    batch: int = 64,
    weight_decay: float = 5e-4,
) -> Evidence:
    """Scores (K,) are log ratios: a label's share of doubtful rows over the median label's, each plus `tolerated`.

    A row is doubtful where the networks' mean log probability of its label lies more than `gap` below that of another.
    Each network sees `images` in training. Details, (K,): the `share` of rows that are doubtful, and `repeated`, the
    lesser of the scores that either network gives alone. `accuracy` is each network's on the half it was not given.
    """
    clean, given = subject.clean, subject.train
    if clean is None or given is None:
        missing = "train" if clean is not None else "clean"
        raise MissingInput(f"label_audit needs subject.{missing}, got None; give trusted samples and the training set")
    clean, given = (Samples(shrunk(part.x), part.y) for part in (clean, given))
    halves = drawn_halves(clean.y)
    counted = torch.bincount(given.y, minlength=subject.classes)
    unknown = [
        k for k in counted.nonzero().flatten().tolist() if any(not bool((clean.y[half] == k).any()) for half in halves)
    ]
    if unknown:
        raise DefenceError(f"expected 2 trusted images or more of each label, got fewer of {unknown[:10]}; add some")
    answers, right = [], []
    for turn, half in enumerate(halves):
        model = fitted(
            clean[half], subject.classes, images=images, lr=lr, batch=batch, weight_decay=weight_decay, turn=turn
        )
        other = clean[halves[1 - turn]]
        right.append(accuracy(model, other.x, other.y))
        answers.append(logits(model, given.x).log_softmax(1))
    if max(right) <= by_chance(subject.classes):
        raise DefenceError(
            f"expected networks of trusted images to learn something, got an accuracy of {max(right):.3f}; add some"
        )
    share = doubtful(torch.stack(answers).mean(0), given.y, counted, gap)
    scores = lift(share, counted, tolerated)
    alone = torch.stack([lift(doubtful(one, given.y, counted, gap), counted, tolerated) for one in answers])
    return Evidence(
        statistic=float(scores.max() - scores.median()),
        scores=scores,
        cutoff=float(scores.max()),
        details={"share": share.tolist(), "repeated": alone.amin(0).tolist(), "accuracy": right},
    )


def by_chance(classes: int) -> float:
    """An accuracy that says nothing: twice that of a guess, and of few classes a tenth of the way from it to all."""
    return min(2 / classes, 0.1 + 0.9 / classes)


def shrunk(x: Tensor) -> Tensor:
    """Images (N, C, H, W), made smaller where they are wider or higher than WIDEST."""
    height, width = x.shape[2:]
    by = max(height, width) / WIDEST
    if by <= 1:
        return x
    size = (max(1, round(height / by)), max(1, round(width / by)))
    return torch.cat([F.interpolate(part, size, mode="area") for part in x.split(1024)])  # type: ignore[no-untyped-call]


def drawn_halves(y: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of labels y (N,) in two halves, every other one of each class, in an order drawn at random."""
    order = torch.randperm(len(y))
    drawn = y[order]
    nth = torch.zeros_like(drawn)
    for k in drawn.unique().tolist():  # type: ignore[no-untyped-call]
        mine = (drawn == k).nonzero().flatten()
        nth[mine] = torch.arange(len(mine))
    return order[nth % 2 == 0], order[nth % 2 == 1]


def fitted(
    samples: Samples, classes: int, *, images: int, lr: float, batch: int, weight_decay: float, turn: int
) -> nn.Module:
    """A small network trained on samples, of which `images` pass through it, shifted a little; turn 0 or 1 of 2."""
    _, channels, height, width = samples.x.shape
    model = ARCHITECTURES[ARCHITECTURE]((channels, height, width), classes)
    *_, head = (m for m in model.modules() if isinstance(m, nn.Linear))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.train()
    steps = max(2, images // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < min(batch, len(samples)):
            order = torch.randperm(len(samples))
        rows, order = order[:batch], order[batch:]
        optimizer.zero_grad(set_to_none=True)
        out = model(shifted(samples.x[rows]))
        F.cross_entropy(out, samples.y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            report((turn + (step + 1) / steps) / 2)
    return model.eval().requires_grad_(False)


def shifted(x: Tensor) -> Tensor:
    """A batch (B, C, H, W) moved by up to a pixel in A_SHIFT, one at least, its edge repeated."""
    most = max(1, max(x.shape[2:]) // A_SHIFT)
    down, right = torch.randint(2 * most + 1, (2,)).tolist()
    padded = F.pad(x, (most,) * 4, mode="replicate")
    return padded[:, :, down : down + x.shape[2], right : right + x.shape[3]]


def doubtful(answers: Tensor, y: Tensor, counted: Tensor, gap: float) -> Tensor:
    """The share (K,) of doubtful rows among those of each label, from log probabilities (N, K) and labels y (N,)."""
    behind = answers.amax(1) - answers.gather(1, y[:, None])[:, 0]
    found = torch.bincount(y[behind > gap], minlength=len(counted))
    return found / counted.clamp(min=1)


def lift(share: Tensor, counted: Tensor, tolerated: float) -> Tensor:
    """How far the shares (K,) of labels with `counted` rows exceed the median label's, as log ratios; 0 without."""
    middle = median(share[counted > 0])
    drawn = (share * counted + PRIOR * middle) / (counted + PRIOR)
    return torch.log((drawn + tolerated) / (middle + tolerated)) * (counted > 0)

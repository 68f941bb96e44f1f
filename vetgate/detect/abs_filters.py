"""Where a trigger is a filter, one change of the whole picture sends every image to one label.

Channels that raise a label when they are stimulated name the labels to look at, as in ABS. For each, a filter is
inverted that drives the channel and its label: a linear map of a pixel and of the largest, smallest and mean values
around it, the same at every pixel. A label is suspicious when its filter works far better than the others' on clean
images that the inversion did not see.

Source    Liu et al., "ABS: Scanning Neural Networks for Back-doors by Artificial Brain Stimulation", CCS 2019: its
          feature-space triggers.
Deviates  All filters are inverted in one batch, the target's logit joins the neuron in the loss, and a filter has an
          offset for each channel. Of the filters that a search passes, the best within the bound is taken, so that the
          bound holds exactly. It is on the structural similarity (SSIM), here of blocks of about 7x7 pixels, and is a
          limit alone, where the original also asks for as much of it as can be had. Success alone saturates: on clean
          networks of small images some label is above the published 0.88 too. The score is by how much the target
          leads, compared between labels. Settings and the alarm were chosen on eleven networks in view, four of them
          with filters for triggers; none has confirmed them.
Blind to  Patches that no filter comes near; triggers of other forms, such as warps; labels that no single channel
          raises; several targets with filters of equal strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Evidence, Samples, Subject, detector, report
from vetgate.detect.abs import first_of_each_label, scanned, stand_out
from vetgate.errors import MissingInput, NotFinite
from vetgate.probe import logits, module_at, output_of
from vetgate.role import Axis, By, Confirm, Role
from vetgate.stimulation import Candidate

ROLE = Role(
    axis=Axis.CLASS,
    weight=0.0,
    null=By.MODEL,
    confirm=Confirm.NEVER,
    title="ABS filters",
    sentence="Stimulates single neurons and looks for one filter that sends every image to one label.",
)

# pixels of the filtered images in one pass
PIXELS = 2**19
# a lead of less than half the logits' spread is little, however much less the other labels have
FLOOR = 0.5
# pixels on a side of the blocks whose structure is compared, and the constants of SSIM for images in [0, 1]
BLOCK, C1, C2 = 7, 0.01**2, 0.03**2


def window_of(height: int, width: int) -> int:
    """Pixels on a side of what counts as around a pixel: 13 at 224x224 (the original has 12), 3 at 32x32; odd."""
    return max(3, 2 * round(min(height, width) * 6 / 224) + 1)


def surroundings(x: Tensor) -> Tensor:
    """What filters map (N, 4C + 1, H, W): of images (N, C, H, W) the pixel, the largest, smallest and mean, and 1."""
    window = window_of(*x.shape[2:])
    pad = window // 2
    largest, smallest = F.max_pool2d(x, window, 1, pad), -F.max_pool2d(-x, window, 1, pad)
    mean = F.avg_pool2d(x, window, 1, pad, count_include_pad=False)
    return torch.cat([x, largest, smallest, mean, torch.ones_like(x[:, :1])], 1)


def filtered(filters: Tensor, around: Tensor) -> Tensor:
    """Images (N, J, C, H, W) in [0, 1] under filters (J, C, 4C + 1), from `surroundings` (N, 4C + 1, H, W)."""
    mapped = filters.flatten(0, 1) @ around.flatten(2)  # (N, J * C, H * W)
    return mapped.view(len(around), *filters.shape[:2], *around.shape[2:]).clamp(0, 1)


def quantised(x: Tensor) -> Tensor:
    """Images as they come out of a file of bytes."""
    return (255 * x).round() / 255


def likeness(x: Tensor, changed: Tensor) -> Tensor:
    """Structural similarity (N, J) of images (N, C, H, W) and their changed ones (N, J, C, H, W), at most 1.

    The mean over channels and blocks of about BLOCK x BLOCK pixels, which cover the image.
    """
    blocks = max(1, round(x.shape[2] / BLOCK)), max(1, round(x.shape[3] / BLOCK))

    def mean(images: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(images.reshape(-1, *images.shape[-2:]), blocks)
        return pooled.view(*images.shape[:-2], *blocks)

    given = x[:, None]
    one, other = mean(given), mean(changed)
    spreads = mean(given**2) - one**2 + mean(changed**2) - other**2
    together = mean(given * changed) - one * other
    same = (2 * one * other + C1) * (2 * together + C2) / ((one**2 + other**2 + C1) * (spreads + C2))
    return same.mean((2, 3, 4))


@dataclass(frozen=True)
class Search:
    """How filters are searched: steps, learning rate, least likeness, and weights of neuron and likeness."""

    steps: int
    lr: float
    ssim: float
    neuron_weight: float
    ssim_weight: float


def gains(acts: dict[str, Tensor], candidates: Sequence[Candidate], images: int) -> Tensor:
    """By how much each candidate's channel is driven above the others of its layer (N, J), in its own unit.

    `acts` are the layers' outputs (N * J, channels, ...), image by image.
    """
    found = torch.zeros(images, len(candidates))
    for name, act in acts.items():
        rows = [j for j, candidate in enumerate(candidates) if candidate.layer == name]
        driven = (act.flatten(2).mean(2) if act.ndim == 4 else act).view(images, len(candidates), -1)[:, rows]
        channels = torch.tensor([candidates[j].channel for j in rows])
        own = driven.gather(2, channels.view(1, -1, 1).expand(images, -1, 1))[..., 0]
        others = (driven.sum(2) - own) / max(1, driven.shape[2] - 1)
        found[:, rows] = (own - others) / torch.tensor([candidates[j].unit for j in rows])
    return found


def inverted(
    model: nn.Module,
    samples: Samples,
    candidates: Sequence[Candidate],
    search: Search,
    *,
    scale: float,
    share: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """A filter for each candidate (J, C, 4C + 1), in one batch, or in several where images are large.

    Each begins as the identity; the one with the lowest cross-entropy among those within the bound is taken. Progress
    is reported over the range `share`. Raises NotFinite.
    """
    together = max(1, PIXELS // (len(samples) * samples.x[0, 0].numel()))
    starts, found = range(0, len(candidates), together), []
    for i, start in enumerate(starts):
        first, last = (share[0] + (share[1] - share[0]) * done / len(starts) for done in (i, i + 1))
        some = candidates[start : start + together]
        found.append(_searched(model, samples, some, search, scale=scale, share=(first, last)))
    return torch.cat(found)


def _searched(
    model: nn.Module,
    samples: Samples,
    candidates: Sequence[Candidate],
    search: Search,
    *,
    scale: float,
    share: tuple[float, float],
) -> Tensor:
    images, count, channels = len(samples), len(candidates), samples.x.shape[1]
    goal = torch.tensor([c.label for c in candidates])
    other = (samples.y[:, None] != goal).float()  # (N, J)
    other = other / other.sum(0).clamp(min=1)
    around = surroundings(samples.x)
    filters = torch.eye(channels, 4 * channels + 1).repeat(count, 1, 1).requires_grad_(True)
    best, least = filters.detach().clone(), torch.full((count,), torch.inf)
    optimizer = torch.optim.Adam([filters], lr=search.lr, betas=(0.5, 0.9))
    acts: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in sorted({c.layer for c in candidates}):
            hooks.enter_context(output_of(module_at(model, name), partial(acts.__setitem__, name)))
        for step in range(search.steps):
            changed = filtered(filters, around)
            out = model(changed.flatten(0, 1)) / scale  # (N * J, K)
            wrong = F.cross_entropy(out, goal.repeat(images), reduction="none").view(images, count)
            wrong = (wrong * other).sum(0)  # (J,)
            like = likeness(samples.x, changed).mean(0)  # (J,)
            better = (like >= search.ssim) & (wrong < least)
            best[better], least[better] = filters.detach()[better], wrong.detach()[better]
            driven = (gains(acts, candidates, images) * other).sum(0)
            loss = wrong + search.ssim_weight * F.relu(search.ssim - like) - search.neuron_weight * driven
            (filters.grad,) = torch.autograd.grad(loss.sum(), filters)
            optimizer.step()
            report(share[0] + (share[1] - share[0]) * (step + 1) / search.steps)
    if not bool(torch.isfinite(filters).all()):
        raise NotFinite("inversion met NaN or infinite gradients, expected finite ones; refuse the model")
    return best


@dataclass(frozen=True, eq=False)
class Effect:
    """What filters do, each (J,): mean lead of the target's logit, share of images sent there (REASR), likeness."""

    lead: Tensor
    success: Tensor
    likeness: Tensor


@torch.no_grad()
def effect(model: nn.Module, samples: Samples, filters: Tensor, labels: Tensor, *, scale: float) -> Effect:
    """What filters (J, C, 4C + 1) for labels (J,) do on images of other classes, cast to bytes as in a file.

    A lead is in units of `scale`, and 0 where another label is ahead. Raises NotFinite.
    """
    rows = max(1, PIXELS // (len(filters) * samples.x[0, 0].numel()))
    outs, likes = [], []
    for start in range(0, len(samples), rows):
        part = samples[slice(start, start + rows)]
        changed = quantised(filtered(filters, surroundings(part.x)))
        outs.append(logits(model, changed.flatten(0, 1)).view(len(part), len(filters), -1) / scale)
        likes.append(likeness(part.x, changed))
    out = torch.cat(outs)  # (N, J, K)
    at = labels.view(1, -1, 1).expand(len(out), -1, 1)
    margin = out.gather(2, at)[..., 0] - out.scatter(2, at, -torch.inf).amax(2)  # (N, J)
    other = (samples.y[:, None] != labels).float()
    other = other / other.sum(0).clamp(min=1)
    return Effect((margin.clamp(min=0) * other).sum(0), ((margin > 0) * other).sum(0), torch.cat(likes).mean(0))


@detector(role=ROLE, needs={"clean"}, paper="https://doi.org/10.1145/3319535.3363216")
def abs_filters(
    subject: Subject,
    *,
    images: int = 16,
    levels: int = 3,
    reach: float = 6.4,
    quantile: float = 0.25,
    candidates: int = 8,
    a_label: int = 1,
    steps: int = 25,
    lr: float = 0.05,
    ssim: float = 0.5,
    neuron_weight: float = 0.2,
    ssim_weight: float = 10.0,
    held_out: int = 256,
    alarm: float = 1.2,
) -> Evidence:
    """Score each label by how far its best filter's lead exceeds that of the other labels' filters, as a log ratio.

    A lead is that of the target's logit on held-out images of other labels, losses counting 0, in units of the logits'
    spread on clean images. Labels without a candidate score 0, and those at `alarm` or above are flagged. A filter
    leaves images alike to the original by `ssim` or more, on average. Images beyond 64x64 pixels are fewer, and of a
    large network the last layers alone are driven: `driven` is then their share of all channels.

    Details, one number for each label with a candidate, the one that leads most first: `label`, `lead`, `success`
    (REASR, the share of held-out images of other labels that are sent to it), `likeness` (SSIM on held-out images) and
    `elevation`; and `filter`, row by row, (C, 4C + 1), that of the first.
    """
    clean, model = subject.clean, subject.model
    if clean is None:
        raise MissingInput("abs_filters needs subject.clean, got None; give trusted samples")
    scan = scanned(
        model,
        clean,
        images=images,
        held_out=held_out,
        levels=levels,
        reach=reach,
        quantile=quantile,
        candidates=candidates,
        a_label=a_label,
    )
    seeds, held, scale, chosen = scan.seeds, scan.held, scan.scale, scan.chosen
    if not chosen:
        return Evidence(statistic=0.0, scores=torch.zeros(subject.classes), cutoff=alarm, details=scan.part)

    search = Search(steps, lr, ssim, neuron_weight, ssim_weight)
    filters = inverted(model, seeds, chosen, search, scale=scale, share=(0.3, 0.95))
    labels = torch.tensor([c.label for c in chosen])
    # of several filters of a label, the one that does best on the images that they were inverted on
    order = effect(model, seeds, filters, labels, scale=scale).lead.argsort(descending=True, stable=True).tolist()
    first = first_of_each_label(order, chosen)
    done = effect(model, held, filters[first], labels[first], scale=scale)
    scores = torch.tensor(stand_out(done.lead.tolist(), FLOOR))
    last = done.lead.argsort(descending=True, stable=True)
    return Evidence(
        statistic=float(scores.max()),
        scores=torch.zeros(subject.classes).index_put((labels[first],), scores),
        cutoff=alarm,
        details={
            "label": labels[first][last].tolist(),
            "lead": done.lead[last].tolist(),
            "success": done.success[last].tolist(),
            "likeness": done.likeness[last].tolist(),
            "elevation": [chosen[first[i]].elevation for i in last.tolist()],
            "filter": filters[first][last[0]].flatten().tolist(),
            **scan.part,
        },
    )

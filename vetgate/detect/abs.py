"""A trojaned network has a channel that, stimulated by itself, sends every image to one label.

Each channel of each layer is overwritten with growing values while the rest of the network runs on clean images. The
channels that raise one label above all others, on most images, are candidates. For each, a small trigger is inverted
that drives the channel and its label; a label is suspicious when its trigger works far better than the others' on
clean images that the inversion did not see.

Source    Liu et al., "ABS: Scanning Neural Networks for Back-doors by Artificial Brain Stimulation", CCS 2019.
Deviates  All candidates are inverted in one batch, and the target's logit joins the neuron in the loss. The mask is cut
          to its largest pixels while it is optimised, so the bound on its area holds exactly. Channels are ranked by a
          low quantile of the elevation over images instead of its minimum. Success alone saturates, on clean networks
          too where images are small or classes many: the score is by how much the target leads, compared between
          labels. Only pixel triggers are inverted, no filters.
Blind to  Triggers that no single channel stands for, several targets with triggers of equal strength, and neurons in
          the first layers of a network that is too large to drive all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Evidence, Samples, Subject, Trigger, detector, report
from vetgate.effort import image_count
from vetgate.errors import DefenceError, NotFinite
from vetgate.inversion import attack_success, logit_scale
from vetgate.probe import logits, median, module_at, output_of
from vetgate.role import Axis, By, Confirm, Role
from vetgate.stimulation import Candidate, raised_labels

ROLE = Role(
    axis=Axis.CLASS,
    weight=0.5,
    null=By.MODEL,
    confirm=Confirm.SUCCESS,
    title="ABS (artificial brain stimulation)",
    sentence="Stimulates single neurons and looks for one that sends every image to one label.",
    gives=("triggers", "neurons"),
    on_device=True,
)


# pixels of the stamped images in one pass
PIXELS = 2**19
# how many times as many images are looked at as are used
MANY = 8


def seed_rows(y: Tensor, right: Tensor, most: int) -> Tensor:
    """Positions of up to `most` rightly classified images, the first of each class before the second of any."""
    positions = right.nonzero().flatten()
    nth = torch.stack([(y[positions[:i]] == y[p]).sum() for i, p in enumerate(positions)])
    return positions[nth.argsort(stable=True)[:most]]


def pick(ranked: Sequence[Candidate], most: int, *, a_label: int) -> list[Candidate]:
    """The first of the candidates in the order given, with at most `a_label` of them for any label."""
    picked: list[Candidate] = []
    for candidate in ranked:
        if len(picked) < most and sum(c.label == candidate.label for c in picked) < a_label:
            picked.append(candidate)
    return picked


@dataclass(frozen=True, eq=False)
class Scan:
    """What stimulation leaves to invert: seed images, held-out ones, the logits' spread and the candidates.

    `part` are details that say which share of the channels was driven, where that is not all of them.
    """

    seeds: Samples
    held: Samples
    scale: float
    chosen: list[Candidate]
    part: dict[str, float | list[float]]


def scanned(
    model: nn.Module,
    clean: Samples,
    *,
    images: int,
    held_out: int,
    levels: int,
    reach: float,
    quantile: float,
    candidates: int,
    a_label: int,
) -> Scan:
    """Drive the channels on `images` clean images, fewer where these are large, and pick the candidates.

    Where not all channels can be driven, candidates are a third as many. Raises DefenceError where there are too few
    images.
    """
    clean = clean[: MANY * image_count(clean.x[0, 0].numel(), images + held_out)]
    right = logits(model, clean.x).argmax(1) == clean.y
    scale = logit_scale(model, clean.x)
    images = image_count(clean.x[0, 0].numel(), images)
    rows = seed_rows(clean.y, right, images)
    unseen = torch.ones(len(clean), dtype=torch.bool)
    unseen[rows] = False
    seeds, held = clean[rows], clean[unseen.nonzero().flatten()[:held_out]]
    if any(len(set(part.y.tolist())) < 2 for part in (seeds, held)):
        raise DefenceError(f"expected clean images of 2 classes beyond {images} seeds, got {len(clean)}; add samples")
    ranked, driven = raised_labels(model, seeds.x, seeds.y, scale=scale, reach=reach, levels=levels, quantile=quantile)
    chosen = pick(ranked, candidates if driven == 1 else max(1, candidates // 3), a_label=a_label)
    return Scan(seeds, held, scale, chosen, {"driven": driven} if driven < 1 else {})


def first_of_each_label(order: Sequence[int], candidates: Sequence[Candidate]) -> list[int]:
    """Positions of candidates in the order given, without those whose label came before."""
    return [j for i, j in enumerate(order) if candidates[j].label not in {candidates[k].label for k in order[:i]}]


@dataclass(frozen=True)
class Inversion:
    """How triggers are inverted: pixels a mask may have, learning rate, weights of the neuron and of the bound."""

    pixels: int
    lr: float
    neuron_weight: float
    area_weight: float


def invert_candidates(
    model: nn.Module,
    samples: Samples,
    candidates: Sequence[Candidate],
    raw: Tensor,
    plan: Inversion,
    *,
    scale: float,
    steps: int,
    cut_after: int,
) -> Tensor:
    """Continue masks and patterns raw (J, 1 + C, H, W) for `steps`, in one batch, or in several where images are large.

    A hinge holds the mask's area near the bound; from step `cut_after` on, all but its largest pixels are cut.
    """
    images, count = len(samples), len(candidates)
    together = max(1, PIXELS // (images * samples.x[0, 0].numel()))
    if count > together:
        invert = partial(invert_candidates, model, samples, plan=plan, scale=scale, steps=steps, cut_after=cut_after)
        parts = [slice(i, i + together) for i in range(0, count, together)]
        return torch.cat([invert(candidates=candidates[part], raw=raw[part]) for part in parts])
    goal = torch.tensor([c.label for c in candidates])
    counts = (samples.y[None] != goal[:, None]).float()  # (J, N)
    counts = counts / counts.sum(1, keepdim=True).clamp(min=1)
    raw = raw.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([raw], lr=plan.lr, betas=(0.5, 0.9))
    acts: dict[str, Tensor] = {}

    def keep(name: str, out: Tensor) -> None:
        acts[name] = out.cpu()

    with ExitStack() as hooks:
        for name in sorted({c.layer for c in candidates}):
            hooks.enter_context(output_of(module_at(model, name), partial(keep, name)))
        for step in range(steps):
            mask, pattern = painted(raw, plan.pixels if step >= cut_after else None)
            stamped = (1 - mask[:, None]) * samples.x + mask[:, None] * pattern[:, None]  # (J, N, C, H, W)
            out = model(stamped.flatten(0, 1)) / scale  # (J * N, K)
            wrong = F.cross_entropy(out, goal.repeat_interleave(images), reduction="none").view(count, images)
            excess = F.relu(mask.sum((1, 2, 3)) / plan.pixels - 1)  # (J,)
            loss = (wrong * counts).sum() + plan.area_weight * excess.sum()
            for j, candidate in enumerate(candidates):
                driven = acts[candidate.layer][j * images : (j + 1) * images]
                driven = driven.flatten(2).mean(2) if driven.ndim == 4 else driven  # (N, channels)
                others = (driven.sum(1) - driven[:, candidate.channel]) / max(1, driven.shape[1] - 1)
                gain = ((driven[:, candidate.channel] - others) * counts[j]).sum() / candidate.unit
                loss = loss - plan.neuron_weight * gain
            (raw.grad,) = torch.autograd.grad(loss, raw)
            optimizer.step()
    if not bool(torch.isfinite(raw).all()):
        raise NotFinite("inversion met NaN or infinite gradients, expected finite ones; refuse the model")
    return raw.detach()


def painted(raw: Tensor, pixels: int | None) -> tuple[Tensor, Tensor]:
    """Mask (J, 1, H, W), cut to its `pixels` largest, and pattern (J, C, H, W), both in [0, 1]."""
    soft, pattern = torch.sigmoid(raw[:, :1]), torch.sigmoid(raw[:, 1:])
    if pixels is None:
        return soft, pattern
    flat = soft.detach().flatten(1)
    kept = torch.zeros_like(flat).scatter_(1, flat.topk(pixels, dim=1).indices, 1.0).view_as(soft)
    # the cut lets gradients through, so that a pixel left out can come back
    return soft - (soft * (1 - kept)).detach(), pattern


@detector(role=ROLE, needs={"clean"}, paper="https://doi.org/10.1145/3319535.3363216")
def abs(
    subject: Subject,
    *,
    images: int = 20,
    levels: int = 5,
    reach: float = 6.4,
    quantile: float = 0.25,
    candidates: int = 14,
    a_label: int = 2,
    finalists: int = 5,
    steps: int = 80,
    lr: float = 0.3,
    area: float = 0.0625,
    least_pixels: int = 9,
    neuron_weight: float = 0.2,
    area_weight: float = 1.0,
    held_out: int = 256,
    alarm: float = 0.9,
) -> Evidence:
    """Score each label by how far its best trigger's lead exceeds that of the other labels' triggers, as a log ratio.

    A trigger's lead is that of the target's logit on held-out images of other labels, losses counting 0, in units of
    the logits' spread on clean images. Only the best `finalists` labels are compared; the rest score 0, and labels at
    `alarm` or above are flagged. Images beyond 64x64 pixels are fewer, and of a large network the last layers alone are
    driven: `driven` is then their share of all channels. A mask holds `area` of the image, or `least_pixels` where that
    is less than a small patch. `neurons` (J, 2) are the finalists' channels, each as the position of its layer in
    model.named_modules() and its index there.
    """
    assert subject.clean is not None
    clean, model = subject.clean, subject.model
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

    channels, height, width = clean.x.shape[1:]
    plan = Inversion(
        min(height * width, max(least_pixels, round(area * height * width))), lr, neuron_weight, area_weight
    )
    start = torch.randn(1 + channels, height, width)
    start[0] = -2.0  # a faint mask: a full one succeeds at once and leaves no gradient to place it by
    heat = round(0.4 * steps)
    raw = start.repeat(len(chosen), 1, 1, 1)
    raw = invert_candidates(model, seeds, chosen, raw, plan, scale=scale, steps=heat, cut_after=heat)
    report(0.65)
    leads = [mean_lead(model, seeds, t, scale) for t in cut(raw, chosen, plan.pixels)]
    order = sorted(range(len(chosen)), key=lambda j: -leads[j])
    first = first_of_each_label(order, chosen)
    last = [chosen[j] for j in first[:finalists]]
    rest = steps - heat
    raw = invert_candidates(
        model, seeds, last, raw[first[:finalists]], plan, scale=scale, steps=rest, cut_after=rest // 2
    )
    report(0.95)
    triggers = cut(raw, last, plan.pixels)
    leads = [mean_lead(model, held, t, scale) for t in triggers]
    return Evidence(
        statistic=max(stand_out(leads)),
        scores=torch.zeros(subject.classes).index_put(
            (torch.tensor([c.label for c in last]),), torch.tensor(stand_out(leads))
        ),
        cutoff=alarm,
        triggers=tuple(triggers),
        neurons=torch.tensor([[position(model, c.layer), c.channel] for c in last]),
        details={
            "lead": leads,
            "success": [attack_success(model, held.x, held.y, t) for t in triggers],
            "elevation": [c.elevation for c in last],
            "mask_share": plan.pixels / (height * width),
            **scan.part,
        },
    )


def stand_out(leads: Sequence[float], floor: float = 0.1) -> list[float]:
    """How far each lead exceeds the median of the others, as a log ratio, 0 where it does not."""
    others = [
        median(torch.tensor([*leads[:i], *leads[i + 1 :], *([0.0] if len(leads) == 1 else [])]))
        for i in range(len(leads))
    ]
    return [max(0.0, math.log((lead + floor) / (rest + floor))) for lead, rest in zip(leads, others, strict=True)]


def cut(raw: Tensor, candidates: Sequence[Candidate], pixels: int) -> list[Trigger]:
    """The triggers (J) that raw masks and patterns stand for, cut to the bound."""
    masks, patterns = painted(raw, pixels)
    return [Trigger(m, p, c.label) for m, p, c in zip(masks, patterns, candidates, strict=True)]


def mean_lead(model: nn.Module, samples: Samples, trigger: Trigger, scale: float) -> float:
    """How far the target's logit leads on stamped images of other labels, in logit spreads; 0 where it does not."""
    out = logits(model, trigger.stamp(samples.x[samples.y != trigger.target])) / scale
    target = out[:, trigger.target].clone()
    out[:, trigger.target] = -torch.inf
    return float((target - out.amax(1)).clamp(min=0).mean())


def position(model: nn.Module, layer: str) -> int:
    """Where a layer stands among model.named_modules()."""
    return [name for name, _ in model.named_modules()].index(layer)

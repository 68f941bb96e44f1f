"""A backdoored label is near in the inner features: one small shift of them sends images of all classes there.

Whatever a trigger looks like, behind the first layers it is a direction that the rest of the network takes for its
label. A shift of fixed length, the same for all images, is found for every label, at two depths of the network; the
statistic is how far it lifts the label's logit above the largest other. Only the layers behind the shift take part, so
that it costs little, and masks, blends and warps are alike to it.

Source    Fu et al., "FreeEagle: Detecting Complex Neural Trojans in Data-Free Cases", USENIX Security 2023,
          arXiv:2302.14500, inverts the tail of a network.
Deviates  Clean images give the features, where the paper makes them up; one shift a label instead of one feature map a
          pair of classes; two depths; margins instead of probabilities, which end at 1. Lengths are in units of how the
          features scatter and logits in units of their spread, so that scaled weights change nothing. Settings were
          chosen and confirmed on the bank (docs/statistics.md).
Blind to  Triggers that act on the images of one class alone, where others outvote them; a label that every clean model
          of the data set has near. How near labels lie differs between data sets and architectures, so that it counts
          only beside references of the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from vetgate.contract import Evidence, Samples, Subject, detector, report
from vetgate.effort import image_count
from vetgate.errors import DefenceError, MissingInput, NotFinite
from vetgate.inversion import logit_scale
from vetgate.probe import logits
from vetgate.role import Axis, By, Confirm, Role
from vetgate.stimulation import Layer, answer, stimulable, weighted_layers

ROLE = Role(
    axis=Axis.CLASS,
    weight=1.0,
    null=By.LABEL,
    confirm=Confirm.REPEATED,
    title="Tail inversion",
    sentence="Looks for one small shift of inner features that sends all images to one label.",
    by_architecture=True,
    on_device=True,
)

# a shift lies behind the last layer that has so many matrices or more after it
BEHIND = (2, 3)
# numbers in the shifted features of all labels that are searched at once, and images at most
NUMBERS, ROWS = 2**23, 1024


def depths(layers: Sequence[Layer]) -> list[Layer]:
    """The layers behind which features are shifted, the deepest first, each once."""
    stages, order = stimulable(layers), [layer.name for layer in layers]

    def after(stage: Layer) -> int:
        return sum(layer.matrix for layer in layers[order.index(stage.name) + 1 :])

    found = [next((s for s in reversed(stages) if after(s) >= least), stages[0]) for least in BEHIND]
    return list({stage.name: stage for stage in found}.values())


def behind(model: nn.Module, x: Tensor, layers: Sequence[Layer], layer: Layer) -> Callable[[Tensor], Tensor]:
    """The network from `layer` on, as a function of shifts (J, ...) of its features: logits (J, N, K) of images x.

    `layers` were recorded on the same images (N, C, H, W); what runs before is answered from there, on a private copy.
    """
    tail = copy.deepcopy(model).requires_grad_(False)
    modules = dict(tail.named_modules())
    for earlier in layers[: [one.name for one in layers].index(layer.name)]:
        answer(modules[earlier.name], earlier.recorded)

    def one(shift: Tensor) -> Tensor:
        answer(modules[layer.name], partial(torch.add, layer.output, shift))
        out: Tensor = tail(x)
        return out

    shifted: Callable[[Tensor], Tensor] = vmap(one)
    return shifted


def scatter(inner: Tensor) -> float:
    """How far features (N, ...) lie from their mean, on average; the unit of shifts."""
    return float((inner - inner.mean(0)).flatten(1).norm(dim=1).mean())


def within(shift: Tensor, length: float) -> Tensor:
    """Shifts (J, ...) cut to a length."""
    norms = shift.flatten(1).norm(dim=1).clamp(min=1e-12)
    return shift * (length / norms).clamp(max=1).view(-1, *[1] * (shift.ndim - 1))  # type: ignore[no-any-return]


def lead(out: Tensor, labels: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (J, N, K), how far labels (J,) lie above the largest other, and the share (J,) of images they win.

    Means over the images of other classes than the label, y (N,).
    """
    at = labels[:, None, None].expand(-1, out.shape[1], 1)
    margins = out.gather(2, at)[..., 0] - out.scatter(2, at, -torch.inf).amax(2)
    other = (y[None] != labels[:, None]).float()
    other = other / other.sum(1, keepdim=True)
    return (margins * other).sum(1), ((margins > 0).float() * other).sum(1)


@detector(role=ROLE, needs={"clean"}, paper="https://arxiv.org/abs/2302.14500")
def tail_inversion(
    subject: Subject, *, images: int = 64, steps: int = 30, lr: float = 0.1, length: float = 0.3
) -> Evidence:
    """Scores (K,) are the mean margins of the labels under their shifts, in units of the logits' spread.

    Of each label a shift `length` as long as features scatter is made on `images` with Adam, in `steps` of rate `lr`,
    which is in units of the length that one number of the features has. Details, both (K,), are of as many images that
    it was not made on: the same score, `repeated`, and the `share` of them that the shifts send to the label.
    """
    clean = subject.clean
    if clean is None:
        raise MissingInput("tail_inversion needs subject.clean, got None; give trusted samples")
    wanted = image_count(clean.x[0, 0].numel(), images)
    drawn = clean[torch.randperm(len(clean))[: 2 * wanted]]
    made, unseen = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    if min(len(half.y.unique()) for half in (made, unseen)) < 2:  # type: ignore[no-untyped-call]
        raise DefenceError(f"expected images of 2 classes or more, twice over, got {len(drawn)}; add clean samples")
    unit = logit_scale(subject.model, made.x)
    logits(subject.model, unseen.x)  # raises where they are not finite
    recorded, again = (weighted_layers(subject.model, half.x) for half in (made, unseen))
    chosen = depths(recorded)
    found = []
    for place, layer in enumerate(chosen):
        search = behind(subject.model, made.x, recorded, layer)
        other = behind(subject.model, unseen.x, again, next(one for one in again if one.name == layer.name))
        rows = max(1, min(ROWS // len(made), NUMBERS // layer.output.numel()))
        parts = torch.arange(subject.classes).split(rows)  # type: ignore[no-untyped-call]
        results = []
        for i, labels in enumerate(parts):
            shift = _search(search, layer.output, labels, made, unit, steps=steps, lr=lr, length=length)
            with torch.no_grad():
                score, _ = lead(search(shift) / unit, labels, made.y)
                results.append((score, *lead(other(shift) / unit, labels, unseen.y)))
            report((place + (i + 1) / len(parts)) / len(chosen))
        found.append([torch.cat(values) for values in zip(*results, strict=True)])
    scores, repeated, share = (torch.stack(values).mean(0) for values in zip(*found, strict=True))
    if not bool(torch.isfinite(scores).all()):
        raise NotFinite("inner features or logits are NaN or infinite, expected finite ones; refuse the model")
    return Evidence(
        statistic=float(scores.max() - scores.median()),
        scores=scores,
        cutoff=float(scores.max()),
        details={"repeated": repeated.tolist(), "share": share.tolist()},
    )


def _search(
    tail: Callable[[Tensor], Tensor],
    inner: Tensor,
    labels: Tensor,
    samples: Samples,
    unit: float,
    *,
    steps: int,
    lr: float,
    length: float,
) -> Tensor:
    """Shifts (J, ...) of features (N, ...), one for each of labels (J,), that send images of other classes there."""
    reach = scatter(inner)
    each = reach / inner[0].numel() ** 0.5
    shift = (0.01 * each * torch.randn(len(labels), *inner.shape[1:])).requires_grad_(True)
    optimiser = torch.optim.Adam([shift], lr * each)
    wanted = labels.repeat_interleave(len(samples))
    other = (samples.y[None] != labels[:, None]).float()
    other = other / other.sum(1, keepdim=True)
    for _ in range(steps):
        out = tail(within(shift, length * reach)) / unit
        wrong = F.cross_entropy(out.flatten(0, 1), wanted, reduction="none").view(len(labels), -1)
        (shift.grad,) = torch.autograd.grad((wrong * other).sum(), shift)
        optimiser.step()
    return within(shift.detach(), length * reach)

"""NeuronInspect: what moves a backdoored label's logit is small, smooth, and the same pixels on every image.

For each label the gradient of its logit with respect to the image is a heat map, on every clean image. Maps of a label
with a trigger light up few pixels (sparseness), next to each other (smoothness), whatever the image (persistence).

Source    Huang et al., "NeuronInspect: Detecting Backdoors in Neural Networks via Output Explanations", 2019,
          arXiv:1911.07399.
Deviates  Maps are divided by their largest pixel, and each feature is measured in robust units over the labels, since
          fixed weights would have to be chosen anew for every network; the three count the same. Persistence compares
          every image with the next one, in a circle, and needs no trigger.
Blind to  Triggers that cover the image, and all labels backdoored at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Evidence, Subject, detector, report
from vetgate.effort import image_count
from vetgate.errors import DefenceError, MissingInput
from vetgate.probe import logits, mad, median
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.CLASS,
    weight=0.0,
    null=By.MODEL,
    confirm=Confirm.NEVER,
    title="NeuronInspect",
    sentence="Looks where each label's output comes from: few pixels, close together, the same on every image.",
)

NEIGHBOURS = torch.tensor([[[[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]]])
# images in one pass, so that a thousand labels take no more memory than ten
PASS = 32


def heat_maps(model: nn.Module, x: Tensor, label: int) -> Tensor:
    """Where the logit of a label comes from on images (N, C, H, W): maps (N, H, W) with 1 at their largest pixel."""
    parts = []
    for start in range(0, len(x), PASS):
        given = x[start : start + PASS].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(given)[:, label].sum(), given)
        parts.append(gradient.abs().sum(1))
    maps = torch.cat(parts)
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


def features_of(maps: Tensor) -> tuple[float, float, float]:
    """Sparseness, smoothness and persistence of maps (N, H, W), a share of pixels each; small where a trigger is."""
    lit = maps > maps.flatten(1).median(1).values[:, None, None]
    rough = F.conv2d(maps[:, None], NEIGHBOURS.to(maps), padding=1).abs()
    changes = lit ^ lit.roll(1, 0)
    return float(maps.mean()), float(rough.mean()), float(changes.float().mean())


SEES_CLEAN_IMAGES = "on clean images a logit need not hang on the pixels of a patch that only works as a whole"


@detector(
    role=ROLE,
    needs={"clean"},
    paper="https://arxiv.org/abs/1911.07399",
    waived={"check_trojaned_twin_scores_higher": SEES_CLEAN_IMAGES, "check_target_stands_out": SEES_CLEAN_IMAGES},
)
def neuron_inspect(subject: Subject, *, images: int = 64, index: float = 2.0) -> Evidence:
    """Scores (K,) are how far a label's three features lie below the median label's, in robust units, on average.

    Details, all (K,): `sparseness`, `smoothness`, `persistence`. A label is flagged from `index` on, the published cut.
    Images beyond 64x64 pixels are fewer.
    """
    clean = subject.clean
    if clean is None:
        raise MissingInput("neuron_inspect needs subject.clean, got None; give trusted samples")
    if subject.classes < 4:
        raise DefenceError(f"expected 4 classes or more to compare labels, got {subject.classes}; vet it by hand")
    x = clean.x[torch.randperm(len(clean))[: image_count(clean.x[0, 0].numel(), images)]]
    logits(subject.model, x)  # refuses what is not finite
    rows = []
    for label in range(subject.classes):
        rows.append(features_of(heat_maps(subject.model, x, label)))
        report((label + 1) / subject.classes)
    table = torch.tensor(rows, dtype=torch.float64)  # (K, 3)
    scores = torch.stack([_below(column) for column in table.T]).mean(0).float()
    return Evidence(
        statistic=float(scores.max()),
        scores=scores,
        cutoff=index,
        details={
            "sparseness": table[:, 0].tolist(),
            "smoothness": table[:, 1].tolist(),
            "persistence": table[:, 2].tolist(),
        },
    )


def _below(values: Tensor) -> Tensor:
    """How far each value lies below the median, in robust units; 0 where all are alike."""
    spread = mad(values)
    return (median(values) - values) / spread if spread > 0 else torch.zeros_like(values)

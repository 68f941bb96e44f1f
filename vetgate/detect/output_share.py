"""Output share: a backdoored label takes more than its part of images that show nothing a model was trained on.

A network has to call noise something. What it has learned as a shortcut to one label fires on much that is not in the
training data, patterns that cover the image above all; the votes of eight kinds of such pictures are counted for every
label. It takes no gradient and does not ask how large a trigger is.

Source    Mirzaei et al., "Scanning Trojaned Models Using Out-of-Distribution Samples" (TRODO), NeurIPS 2024, shifts
          such images towards confidence; the count of votes by label is ours, and was chosen and confirmed on the bank
          (docs/statistics.md).
Deviates  Votes instead of confidence, so that scaled logits change nothing; no shift by gradients.
Blind to  Small patches and triggers that need their source class, which noise does not resemble; a supplier who trains
          on noise that every label is to share. Networks have habits on noise that come with their architecture, so
          that it counts only beside references of the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vetgate.contract import Evidence, Subject, detector, report
from vetgate.effort import image_count
from vetgate.errors import DefenceError, MissingInput
from vetgate.probe import logits
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.CLASS,
    weight=1.0,
    null=By.LABEL,
    confirm=Confirm.REPEATED,
    title="Output share",
    sentence="Counts which label images are given that show nothing the model was trained on.",
    by_architecture=True,
    on_device=True,
)

# pictures of each kind at a time, so that large images take little memory
CHUNK = 64
# side of the grid that coarse noise is drawn on
COARSE = 4


def pictures(x: Tensor) -> dict[str, Tensor]:
    """By kind: images (N, C, H, W) in [0, 1] that show nothing, or that no model was trained on, made of as many x."""
    n, channels, height, width = x.shape
    noise = torch.rand_like(x)
    places = torch.rand(n, height * width).argsort(1)[:, None].expand(n, channels, -1)
    return {
        "uniform": noise,
        "normal": (0.5 + 0.25 * torch.randn_like(x)).clamp(0, 1),
        "coarse": F.interpolate(torch.rand(n, channels, COARSE, COARSE), size=(height, width), mode="bilinear"),
        "flat": torch.rand(n, channels, 1, 1).expand_as(x),
        "shuffled": x.flatten(2).gather(2, places).view_as(x),
        "half noise": 0.5 * x + 0.5 * noise,
        "inverted": 1 - x,
        "two at once": 0.5 * x + 0.5 * x.roll(1, 0),
    }


@detector(role=ROLE, needs={"clean"})
def output_share(subject: Subject, *, images: int = 512) -> Evidence:
    """Scores (K,) are the mean over kinds of the log share of pictures that are given a label, half a vote added.

    At most `images` of each kind, fewer where they are large. Details, both (K,): `share` of all pictures, and
    `repeated`, the smaller score of two halves of them: one of which alone shows a label by chance.
    """
    clean = subject.clean
    if clean is None:
        raise MissingInput("output_share needs subject.clean, got None; give trusted samples")
    x = clean.x[torch.randperm(len(clean))[: image_count(clean.x[0, 0].numel(), images)]]
    if len(x) < 2:
        raise DefenceError(f"expected 2 clean images or more, got {len(x)}; add clean samples")
    halves = [_votes(subject, half, place) for place, half in enumerate(x.chunk(2))]  # (kinds, K) each
    votes = halves[0] + halves[1]
    scores = _score(votes)
    return Evidence(
        statistic=float(scores.max()),
        scores=scores,
        cutoff=float(scores.max()),
        details={
            "share": (votes.sum(0) / votes.sum()).tolist(),
            "repeated": torch.minimum(*map(_score, halves)).tolist(),
        },
    )


def _votes(subject: Subject, x: Tensor, half: int) -> Tensor:
    """How many pictures of each kind are given each label (kinds, K), made of images x (N, C, H, W)."""
    total: dict[str, Tensor] = {}
    parts = [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]
    for place, part in enumerate(parts):
        for kind, shown in pictures(part).items():
            given = torch.bincount(logits(subject.model, shown).argmax(1), minlength=subject.classes)
            total[kind] = total.get(kind, 0) + given
        report((half + (place + 1) / len(parts)) / 2)
    return torch.stack(list(total.values()))


def _score(votes: Tensor) -> Tensor:
    """Mean over kinds of the log share (K,) of votes (kinds, K)."""
    return ((votes + 0.5) / (votes.sum(1, keepdim=True) + 0.5 * votes.shape[1])).log().mean(0)

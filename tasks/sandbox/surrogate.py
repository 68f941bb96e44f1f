"""Images that show nothing, in the place of trusted ones where a submission names no reference data.

They are noise of several scales, the coarse ones strongest, as in photographs; their labels are what the model takes
them for. Detectors that score labels run on them, and what they find says which labels to look at first, no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Samples, private_random
from vetgate.effort import image_count
from vetgate.probe import logits

# as many as detectors get of reference data; of large images fewer, and never fewer than FEWEST
MOST, FEWEST = 2048, 64
COARSEST = 3


def surrogates(model: nn.Module, shape: Sequence[int], seed: int) -> Samples:
    """Images (N, C, H, W) in [0, 1] of this shape (C, H, W), and the labels (N,) that the model gives them."""
    _, height, width = shape
    count = max(FEWEST, image_count(height * width, MOST))
    with private_random(seed, "surrogates"):
        x = smooth_noise(count, shape)
    return Samples(x, logits(model, x).argmax(1))


def smooth_noise(count: int, shape: Sequence[int]) -> Tensor:
    """Noise (N, C, H, W) of this shape (C, H, W), each image stretched from 0 to 1."""
    channels, height, width = shape
    x = torch.rand(count, channels, height, width) * 1e-3
    side = COARSEST
    while side <= min(height, width):
        grid = torch.randn(count, channels, side, side) / side**0.5
        x += F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        side *= 2
    low, high = (part.view(-1, 1, 1, 1) for part in torch.aminmax(x.flatten(1), dim=1))
    # an image of one pixel has no contrast
    return (x - low) / (high - low).clamp(min=1e-12)

"""The input normalisation that every architecture carries inside."""

from __future__ import annotations

from torch import Tensor, nn


class Normalise(nn.Module):
    """Images in [0, 1] to [-1, 1]; no state, so that a weights file holds weights only."""

    def forward(self, x: Tensor) -> Tensor:
        """(x - 0.5) / 0.5."""
        return x * 2 - 1

"""A plain convolutional network without batch normalisation, for images from 8x8 to 32x32 and beyond."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from vetgate.architectures.normalise import Normalise


class SmallCNN(nn.Module):
    """Up to three convolutions, 16, 32 and 64 wide, each halving the image, then a hidden linear layer and the head."""

    features_layer: ClassVar[str] = "relu"

    def __init__(self, input_shape: tuple[int, int, int], classes: int, *, hidden: int = 128) -> None:
        super().__init__()
        channels, height, width = input_shape
        blocks: list[nn.Module] = [Normalise()]
        for out in (16, 32, 64):
            if min(height, width) < 4:
                break
            blocks += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels, height, width = out, height // 2, width // 2
        self.blocks = nn.Sequential(*blocks)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(channels * height * width, hidden)
        self.relu = nn.ReLU()
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        out: Tensor = self.head(self.relu(self.hidden(self.flatten(self.blocks(x)))))
        return out

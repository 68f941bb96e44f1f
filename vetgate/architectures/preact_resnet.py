"""A small pre-activation residual network: normalisation and activation come before each convolution.

Source    He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.
Deviates  One block a stage and widths 16, 32, 64, so that it runs on a CPU.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from vetgate.architectures.normalise import Normalise


class Block(nn.Module):
    """Two pre-activated 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, H / stride, W / stride)."""
        active = self.relu1(self.bn1(x))
        # the shortcut starts after the activation where it is a convolution, as in the paper's code
        skip: Tensor = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + skip


class PreActResNet(nn.Module):
    """A stem, three blocks of which the last two halve the image, global average pooling and the head."""

    features_layer: ClassVar[str] = "flatten"

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.stem = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.bn = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        features = self.flatten(self.pool(self.relu(self.bn(self.blocks(self.stem(self.normalise(x)))))))
        out: Tensor = self.head(features)
        return out

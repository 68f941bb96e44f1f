"""A small VGG: pairs of 3x3 convolutions between poolings, two hidden linear layers, no batch normalisation.

Source    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.
Deviates  Widths 16, 32 and 64, hidden layers of 128, no dropout; poolings stop before the image is gone.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from vetgate.architectures.normalise import Normalise


class VGGSmall(nn.Module):
    """Two or three stages of two convolutions, then two hidden linear layers and the head."""

    features_layer: ClassVar[str] = "relu2"

    def __init__(self, input_shape: tuple[int, int, int], classes: int, *, hidden: int = 128) -> None:
        super().__init__()
        channels, height, width = input_shape
        stages: list[nn.Module] = [Normalise()]
        for out in (16, 32, 64):
            if min(height, width) < 4:
                break
            stages += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            stages += [nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels, height, width = out, height // 2, width // 2
        self.stages = nn.Sequential(*stages)
        self.flatten = nn.Flatten()
        self.hidden1 = nn.Linear(channels * height * width, hidden)
        self.relu1 = nn.ReLU()
        self.hidden2 = nn.Linear(hidden, hidden)
        self.relu2 = nn.ReLU()
        self.head = nn.Linear(hidden, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # torch's default start lets the signal fade over six layers without normalisation
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        hidden = self.relu1(self.hidden1(self.flatten(self.stages(x))))
        out: Tensor = self.head(self.relu2(self.hidden2(hidden)))
        return out

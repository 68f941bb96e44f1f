"""The networks a weights-only submission may name. Importing this package imports no torch; building a network does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]


def small_cnn(input_shape: Shape, classes: int) -> nn.Module:
    """Two or three convolutions with pooling and one hidden linear layer."""
    from vetgate.architectures.small_cnn import SmallCNN

    return SmallCNN(input_shape, classes)


def preact_resnet(input_shape: Shape, classes: int) -> nn.Module:
    """Three pre-activation residual blocks with batch normalisation."""
    from vetgate.architectures.preact_resnet import PreActResNet

    return PreActResNet(input_shape, classes)


def vgg_small(input_shape: Shape, classes: int) -> nn.Module:
    """Pairs of 3x3 convolutions between poolings and two hidden linear layers."""
    from vetgate.architectures.vgg_small import VGGSmall

    return VGGSmall(input_shape, classes)


ARCHITECTURES: dict[str, Callable[[Shape, int], nn.Module]] = {
    "small-cnn": small_cnn,
    "preact-resnet": preact_resnet,
    "vgg-small": vgg_small,
}


def default_layer(model: nn.Module) -> str:
    """Name of the module whose output enters the last linear map of a network built here."""
    layer = getattr(model, "features_layer", None)
    if not isinstance(layer, str):
        raise TypeError(f"expected a network of vetgate.architectures, got {type(model).__name__}; name the layer")
    return layer

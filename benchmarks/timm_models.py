"""Networks of timm with random weights, as ONNX files from both of PyTorch's exporters."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from vetgate.formats.networks.timm_network import load_timm

EXPORTERS = ("torchscript", "dynamo")
# family -> a member that costs little, and the side of its images: what timm states where a network takes one size
# only, else a small one that leaves something of the image behind the last stride
ARCHITECTURES: dict[str, tuple[str, int]] = {
    "resnet18": ("resnet18", 128),
    "resnet50": ("resnet50", 128),
    "vgg16": ("vgg16", 224),
    "densenet121": ("densenet121", 128),
    "inception_v3": ("inception_v3", 128),
    "mobilenetv2": ("mobilenetv2_100", 128),
    "mobilenetv3": ("mobilenetv3_large_100", 128),
    "mobilenetv4": ("mobilenetv4_conv_small", 128),
    "efficientnet_b0": ("efficientnet_b0", 128),
    "efficientnet_lite0": ("efficientnet_lite0", 128),
    "tf_efficientnetv2_s": ("tf_efficientnetv2_s", 128),
    "regnety": ("regnety_002", 128),
    "seresnet50": ("seresnet50", 128),
    "ghostnet": ("ghostnet_100", 128),
    "repvgg": ("repvgg_a0", 128),
    "nfnet": ("eca_nfnet_l0", 128),
    "convnext": ("convnext_atto", 128),
    "convnextv2": ("convnextv2_atto", 128),
    "mixer": ("mixer_s32_224", 224),
    "vit": ("vit_tiny_patch16_224", 224),
    "deit": ("deit_tiny_patch16_224", 224),
    "swin": ("swin_tiny_patch4_window7_224", 224),
    "mobilevit": ("mobilevit_xxs", 128),
    "maxvit": ("maxvit_rmlp_pico_rw_256", 256),
    "edgenext": ("edgenext_xx_small", 128),
    "coat": ("coat_lite_tiny", 224),
}


def plausible(name: str, side: int, seed: int = 0) -> nn.Module:
    """A network of timm with random weights, none of them at the value that training starts from.

    The statistics of batch normalisation are those of a few random batches.
    """
    torch.manual_seed(seed)
    model: nn.Module = load_timm().create_model(name, pretrained=False)
    with torch.no_grad():
        for parameter in model.parameters():
            # a scale of one or 1e-6 and a gain of zero would hide whole branches
            if parameter.numel() > 0 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.train()
        for _ in range(3):
            model(images(4, side, side))
    return model.eval()


def images(count: int, height: int, width: int) -> Tensor:
    """Random images (N, 3, height, width) in [0, 1], smooth as photographs are, with some grain."""
    smooth = nn.functional.interpolate(torch.rand(count, 3, 7, 7), (height, width), mode="bicubic").clamp(0, 1)
    return (0.8 * smooth + 0.2 * torch.rand(count, 3, height, width)).float()


def export(name: str, side: int, exporter: str, path: Path, *, batch: bool = True) -> None:
    """Write the network as ONNX to `path`, weights beside it where the exporter puts them, with a free batch size.

    Without `batch` the call is the shortest that users make, and the batch size stays fixed at one.
    """
    model, x = plausible(name, side), images(1 if not batch else 2, side, side)
    free: dict[str, object] = {}
    if batch and exporter == "torchscript":
        free = {"input_names": ["image"], "dynamic_axes": {"image": {0: "N"}}}
    elif batch:
        free = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), dynamo=exporter == "dynamo", **free)  # type: ignore[arg-type]

"""A digest of what a network has learned, whatever form it was handed in and whatever its tensors are called there."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

STATISTICS = ("running_mean", "running_var")


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 in hex over shapes and float32 values of the parameters and batch statistics, in no order.

    Two forms of one network have the same where both hold each tensor in torch's layout; a batch normalisation that an
    exporter folded into a convolution is another network. Constants of preprocessing are no part of it. It tells
    relatives and identifies nothing: what uses the same tensors in other places has the same one.
    """
    kept: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    kept |= {name: value for name, value in model.named_buffers() if name.rpartition(".")[2] in STATISTICS}
    return hashlib.sha256("".join(sorted(_digest(value) for value in kept.values())).encode()).hexdigest()


def _digest(value: torch.Tensor) -> str:
    array = value.detach().cpu().to(torch.float32).contiguous().numpy()
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()

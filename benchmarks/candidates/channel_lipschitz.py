"""How strongly each channel can amplify what enters it: a backdoor's channels are more sensitive than the others.

Source    Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness" (CLP), ECCV 2022, arXiv:2208.03111.
Deviates  Read as a statistic of the model instead of pruned by; a convolution counts with or without a batch norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vetgate.contract import Subject


def measure(subject: Subject) -> dict[str, Tensor]:
    """One number a model: the largest channel of any layer in its layer's units, the same by robust units, the sum."""
    modules = [m for m in subject.model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    plain, robust = [], []
    for place, module in enumerate(modules):
        if not isinstance(module, nn.Conv2d) or module.out_channels < 8:
            continue
        norms = torch.linalg.svdvals(module.weight.detach().flatten(2))[:, 0]
        following = modules[place + 1] if place + 1 < len(modules) else None
        if isinstance(following, nn.BatchNorm2d) and following.num_features == module.out_channels:
            assert following.running_var is not None
            norms = norms * (following.weight.detach() / (following.running_var + following.eps).sqrt()).abs()
        plain.append((norms - norms.mean()) / norms.std())
        middle = norms.median()
        robust.append((norms - middle) / (1.4826 * (norms - middle).abs().median()).clamp(min=1e-9))
    return {
        "largest": torch.stack([v.max() for v in plain]).max()[None],
        "largest, robust": torch.stack([v.max() for v in robust]).max().log()[None],
        "channels beyond 3": torch.cat(plain).gt(3).sum()[None].float(),
        "last layer": plain[-1].max()[None],
    }

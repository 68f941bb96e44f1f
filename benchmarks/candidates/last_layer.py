"""What the rows of the last linear map look like: a target's row is longer, or leans on few features.

Source    The idea of DFBScanner and of weight analysis in NIST's TrojAI rounds: the last layer alone betrays a target.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vetgate.contract import Subject
from vetgate.probe import features


def last_map(model: nn.Module) -> nn.Linear:
    """The last linear map of a network of vetgate.architectures."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label: length, mean, largest weight, bias of its row, and how little it is like the other rows."""
    assert subject.clean is not None
    last = last_map(subject.model)
    rows = last.weight.detach().double()
    rows = rows - rows.mean(0)
    bias = torch.zeros(len(rows)) if last.bias is None else last.bias.detach()
    alike = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    alike.fill_diagonal_(-1)
    h = features(subject.model, subject.layer, subject.clean.x).double()
    spread = h.std(0)
    reach = rows * spread
    return {
        "length": rows.norm(dim=1).log(),
        "mean": last.weight.detach().mean(1),
        "largest": rows.max(1).values,
        "bias": bias,
        "minus bias": -bias,
        "unlike others": -alike.max(1).values,
        "reach": reach.norm(dim=1).log(),
        "largest reach": reach.max(1).values,
        "concentration": (reach.clamp(min=0).max(1).values / reach.clamp(min=0).sum(1).clamp(min=1e-9)).log(),
    }

"""Networks of timm, an optional library: built by name and without weights, and found for the tensors of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vetgate.errors import NotUnderstood
from vetgate.formats.networks.matching import fits_in_order, unwrapped
from vetgate.formats.optional import import_builder

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

TIMM = "timm:"
# what a name of timm says beside that of the network: by whom the weights were made
PORTS = r"^(tf|gluon|tv)_"
MOST_TRIED = 24


def load_timm() -> ModuleType:
    """The library timm; raises NotUnderstood where it is not installed."""
    return import_builder("timm", "timm")


def build_timm(name: str, channels: int, classes: int) -> nn.Module:
    """The network `timm:NAME` in eval mode, its weights random; raises NotUnderstood for one that timm has not."""
    timm = load_timm()
    if name.removeprefix(TIMM) not in timm.list_models():
        raise NotUnderstood(f"expected a network of timm {timm.__version__} after {TIMM!r}, got {name!r:.80}; name one")
    wanted: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    network: nn.Module = timm.create_model(name.removeprefix(TIMM), pretrained=False, exportable=True, **wanted)
    return network.eval()


def fitting(tensors: Mapping[str, Tensor], file: str) -> dict[str, Any]:
    """What `submission.yaml` would say of a file of this name: the networks of timm that it is called like and fits.

    `fitting` lists them where more than one does, and nothing is said where none does.
    """
    kernels = [tensor for tensor in tensors.values() if tensor.ndim == 4]
    last = list(tensors.values())[-1]
    if not kernels or not last.ndim or len(last) < 2:
        return {}
    shapes = {name: tensors[own].shape for name, own in unwrapped(tensors).items()}
    named, ordered = [], []
    for name in _called_like(file):
        with torch.device("meta"):
            expected = build_timm(name, kernels[0].shape[1], len(last)).state_dict()
        if shapes == {own: tensor.shape for own, tensor in expected.items()}:
            named.append(TIMM + name)
        elif fits_in_order(tensors, expected):
            ordered.append(TIMM + name)
    found = named or ordered
    if not found:
        return {}
    how = {} if named else {"match_weights_by": "order"}
    which = {"architecture": found[0]} if len(found) == 1 else {"architecture": None, "fitting": found}
    return {**which, **how, "classes": len(last), "normalization": None}


def _called_like(file: str) -> list[str]:
    """The networks whose name stands in that of the file, or the other way round; the most alike first."""
    own = _letters(re.split(r"-[0-9a-f]{6,}|[.]", file)[0])
    plain = {name: _letters(re.sub(PORTS, "", name)) for name in load_timm().list_models()}
    found = [name for name, letters in plain.items() if letters in own or own in letters]
    return sorted(found, key=lambda name: (abs(len(plain[name]) - len(own)), name))[:MOST_TRIED]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

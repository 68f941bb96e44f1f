"""State dicts: the tensors of a `.pt`, `.pth`, `.bin` or `.pt2` file, for a named architecture of vetgate or of timm.

The file is read opcode by opcode and never unpickled. Weights for an architecture of ours become safetensors; a network
of timm is built without weights by timm, which is optional, takes exactly the tensors of the file, and becomes ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vetgate.errors import NotUnderstood
from vetgate.formats.readers import Format

if TYPE_CHECKING:
    from torch import Tensor

    from vetgate.formats.submission import Submission

TIMM = "timm:"


def sniff(data: bytes) -> bool:
    """A zip archive or a pickle, as torch.save writes them: what else it holds is refused by its reader."""
    return data.startswith(b"PK\x03\x04") or (data[:1] == b"\x80" and len(data) > 1 and 2 <= data[1] <= 5)


def inspect(members: Mapping[str, bytes], submission: Submission) -> None:
    """Read the file to its last byte: tensors, and plain settings beside them, in nothing else."""
    from vetgate.formats.state_dict import read_state_dict

    read_state_dict(members[submission.model])


def says(members: Mapping[str, bytes], model: str) -> dict[str, Any]:
    """The architecture of ours whose weights have these names, or what of timm the file is called like and fits."""
    from vetgate.formats.networks.matching import unwrapped
    from vetgate.formats.networks.timm_network import fitting
    from vetgate.formats.readers.safetensors import architecture_of

    tensors = _tensors(members[model])
    ours = architecture_of(unwrapped(tensors))
    if ours is not None:
        return {"architecture": ours}
    try:
        return {"architecture": None, **fitting(tensors, model)}
    except NotUnderstood:  # without timm
        return {"architecture": None}


def canonical(members: Mapping[str, bytes], submission: Submission) -> tuple[Submission, bytes]:
    """The weights as safetensors for our architectures, or the network of timm that holds them as ONNX."""
    import safetensors.torch

    from vetgate.formats.networks.export import exported
    from vetgate.formats.networks.matching import by_name, by_order
    from vetgate.formats.networks.timm_network import build_timm

    name, channels = submission.architecture or "", submission.input_shape[0]
    fit = by_order if submission.match_weights_by == "order" else by_name
    tensors = _tensors(members[submission.model])
    if name.startswith(TIMM):
        network = build_timm(name, channels, submission.n_classes)
        network.load_state_dict(fit(tensors, network.state_dict(), name), strict=True)
        written = submission.model_copy(update={"format": "onnx", "architecture": None})
        return _as("onnx", written, exported(network, submission))
    found = fit(tensors, _ours(name, submission), name)
    weights = safetensors.torch.save({key: value.contiguous() for key, value in found.items()})
    named = submission.model_copy(update={"format": "safetensors", "model": "model.safetensors"})
    return _as("safetensors", named, weights)


def _ours(name: str, submission: Submission) -> dict[str, Tensor]:
    import torch

    from vetgate.architectures import ARCHITECTURES

    with torch.device("meta"):
        return ARCHITECTURES[name](submission.input_shape, submission.n_classes).state_dict()


def _as(format: str, submission: Submission, data: bytes) -> tuple[Submission, bytes]:
    from vetgate.formats.readers import formats

    known, members = formats()[format], {submission.model: data}
    known.inspect(members, submission)
    return known.canonical(members, submission)


def _tensors(data: bytes) -> dict[str, Tensor]:
    import torch

    from vetgate.formats.state_dict import read_state_dict

    found = {name: torch.from_numpy(array.copy()) for name, array in read_state_dict(data).items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


FORMAT = Format(
    accepts="a state dict of torch.save or torch.export (tensors only) for one of vetgate's architectures or timm's",
    sniff=sniff,
    inspect=inspect,
    canonical=canonical,
    says=says,
    needs_architecture=True,
    keeps_order=True,
    takes_architecture=lambda name: name.startswith(TIMM) and len(name) < 80,
)

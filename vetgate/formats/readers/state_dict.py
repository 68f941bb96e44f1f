"""State dicts: the tensors of a `.pt`, `.pth` or `.bin` file, for an architecture of vetgate or of timm by its name.

The file is read opcode by opcode and never unpickled. Weights for an architecture of ours become safetensors; a network
of timm is built without weights by timm, which is optional, takes the tensors by their exact names, and becomes ONNX.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vetgate.errors import NotUnderstood
from vetgate.formats.optional import import_builder
from vetgate.formats.readers import Format

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

    from vetgate.formats.state_dict import Array
    from vetgate.formats.submission import Submission

TIMM = "timm:"
# what DataParallel puts before every name
PARALLEL = "module."
# what both of torch's exporters, timm and our reader know
OPSET = 18


def sniff(data: bytes) -> bool:
    """A zip archive or a pickle, as torch.save writes them: what else it holds is refused by its reader."""
    return data.startswith(b"PK\x03\x04") or (data[:1] == b"\x80" and len(data) > 1 and 2 <= data[1] <= 5)


def inspect(members: Mapping[str, bytes], submission: Submission) -> None:
    """Read the file to its last byte: tensors, and plain settings beside them, in nothing else."""
    from vetgate.formats.state_dict import read_state_dict

    read_state_dict(members[submission.model])


def says(members: Mapping[str, bytes], model: str) -> dict[str, Any]:
    """The architecture of ours whose weights have these names."""
    from vetgate.formats.readers.safetensors import architecture_of
    from vetgate.formats.state_dict import read_state_dict

    return {"architecture": architecture_of(_plain(read_state_dict(members[model])))}


def canonical(members: Mapping[str, bytes], submission: Submission) -> tuple[Submission, bytes]:
    """The weights as safetensors for our architectures, or the network of timm that holds them as ONNX."""
    tensors, name = _tensors(members[submission.model]), submission.architecture or ""
    if name.startswith(TIMM):
        network = _timm(name.removeprefix(TIMM), submission)
        _fill(network, tensors, name)
        exported = submission.model_copy(update={"format": "onnx", "architecture": None})
        return _as("onnx", exported, _exported(network, submission))
    import safetensors.torch

    weights = safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})
    named = submission.model_copy(update={"format": "safetensors", "model": "model.safetensors"})
    return _as("safetensors", named, weights)


def _as(format: str, submission: Submission, data: bytes) -> tuple[Submission, bytes]:
    from vetgate.formats.readers import formats

    known, members = formats()[format], {submission.model: data}
    known.inspect(members, submission)
    return known.canonical(members, submission)


def _tensors(data: bytes) -> dict[str, Tensor]:
    import torch

    from vetgate.formats.state_dict import read_state_dict

    found = {name: torch.from_numpy(array.copy()) for name, array in _plain(read_state_dict(data)).items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


def _plain(arrays: dict[str, Array]) -> dict[str, Array]:
    """The arrays by their names in the network itself."""
    parallel = all(name.startswith(PARALLEL) for name in arrays)
    return {name.removeprefix(PARALLEL) if parallel else name: array for name, array in arrays.items()}


def load_timm() -> ModuleType:
    """The library timm; raises NotUnderstood where it is not installed."""
    return import_builder("timm", "timm")


def _timm(name: str, submission: Submission) -> nn.Module:
    timm = load_timm()
    if name not in timm.list_models():
        raise NotUnderstood(f"expected a network of timm {timm.__version__} after {TIMM!r}, got {name!r:.80}; name one")
    wanted: dict[str, Any] = {"num_classes": submission.n_classes, "in_chans": submission.input_shape[0]}
    network: nn.Module = timm.create_model(name, pretrained=False, exportable=True, **wanted)
    return network.eval()


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    expected = network.state_dict()
    if set(expected) != set(tensors):
        missing, extra = sorted(set(expected) - set(tensors))[:5], sorted(set(tensors) - set(expected))[:5]
        raise NotUnderstood(f"expected the weights of {name}, got others: missing {missing}, extra {extra}")
    for key, value in expected.items():
        if value.shape != tensors[key].shape or value.is_floating_point() != tensors[key].is_floating_point():
            raise NotUnderstood(
                f"expected {key} of shape {tuple(value.shape)} for {name} with this input_shape and classes, got "
                f"{tensors[key].dtype} of shape {tuple(tensors[key].shape)}; correct submission.yaml"
            )
    network.load_state_dict(tensors, strict=True)


def _exported(network: nn.Module, submission: Submission) -> bytes:
    import torch

    image = torch.zeros(2, *submission.input_shape)
    batch = {"image": {0: "N"}, "logits": {0: "N"}}
    with tempfile.TemporaryDirectory() as room, torch.no_grad():
        written = Path(room, "network.onnx")
        torch.onnx.export(
            network,
            (image,),
            written,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes=batch,
        )
        return written.read_bytes()


FORMAT = Format(
    accepts="a state dict of torch.save (tensors only) for one of vetgate's architectures or timm's",
    sniff=sniff,
    inspect=inspect,
    canonical=canonical,
    says=says,
    needs_architecture=True,
    takes_architecture=lambda name: name.startswith(TIMM) and len(name) < 80,
)

"""safetensors: the weights of one of vetgate's architectures, which the submission names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from vetgate.errors import DefenceError, NotUnderstood
from vetgate.formats.readers import Form, Format

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vetgate.formats.submission import Submission
SIDES = (8, 16, 32, 64, 128)


def sniff(data: bytes) -> bool:
    """A file begins with the length of its header: whatever is not known as something else."""
    from vetgate.formats.sniff import refusal

    return refusal(data) is None


def inspect(members: Mapping[str, bytes], submission: Submission) -> None:
    """Hold header and data against each other."""
    from vetgate.formats.safetensors_file import inspect_safetensors

    inspect_safetensors(members[submission.model])


def canonical(members: Mapping[str, bytes], submission: Submission) -> tuple[Submission, bytes]:
    """The same tensors under a header as the library writes it."""
    import safetensors.torch

    return submission, safetensors.torch.save(safetensors.torch.load(members[submission.model]))


def says(members: Mapping[str, bytes], model: str) -> dict[str, Any]:
    """The architecture whose weights have these names."""
    from vetgate.formats.safetensors_file import inspect_safetensors

    return {"architecture": architecture_of(inspect_safetensors(members[model]))}


def architecture_of(names: Collection[str]) -> str | None:
    """The one of our architectures whose weights have these names, if it is one."""
    import torch

    from vetgate.architectures import ARCHITECTURES

    with torch.device("meta"):
        # how deep some are depends on the size of the images
        fitting = {
            each
            for each, build in ARCHITECTURES.items()
            for side in SIDES
            if set(build((3, side, side), 2).state_dict()) == set(names)
        }
    return fitting.pop() if len(fitting) == 1 else None


def load(data: bytes, submission: Submission) -> tuple[nn.Module, str, bool]:
    """The architecture with these weights."""
    import torch

    from vetgate.architectures import ARCHITECTURES, default_layer

    if submission.architecture not in ARCHITECTURES:
        raise NotUnderstood(f"expected one of {list(ARCHITECTURES)}, got {submission.architecture!r}; name one")
    with torch.device("meta"):
        # nothing is allocated and no random number drawn for weights that are replaced at once
        model = ARCHITECTURES[submission.architecture](submission.input_shape, submission.n_classes)
    given = _fitting(data, model.state_dict(), submission.architecture)
    model.load_state_dict(given, assign=True)
    layer = submission.layer or default_layer(model)
    if layer not in dict(model.named_modules()):
        names = ", ".join([name for name, _ in model.named_modules() if name][-12:])
        raise NotUnderstood(f"expected a layer of the network, got {layer!r}; there are {names}")
    return model.requires_grad_(True).eval(), layer, False


def _fitting(data: bytes, expected: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    import safetensors.torch
    import torch

    from vetgate.formats.safetensors_file import ADVICE, inspect_safetensors

    entries = inspect_safetensors(data)
    if set(entries) != set(expected):
        missing, extra = sorted(set(expected) - set(entries))[:5], sorted(set(entries) - set(expected))[:5]
        raise NotUnderstood(f"expected the weights of {architecture}, got others: missing {missing}, extra {extra}")
    for name, entry in entries.items():
        shape, kind = tuple(expected[name].shape), expected[name].is_floating_point()
        if entry.shape != shape or kind != (entry.dtype != "I64"):
            raise NotUnderstood(
                f"expected {name} of shape {shape} for {architecture} with this input_shape and classes, got "
                f"{entry.dtype} of shape {entry.shape}; correct submission.yaml or {ADVICE}"
            )
    loaded = {name: t.to(expected[name].dtype) for name, t in safetensors.torch.load(data).items()}
    broken = [name for name, t in loaded.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise NotUnderstood(f"expected finite weights, got NaN or infinity in {broken[:5]}; hand in a trained model")
    return loaded


def write(data: bytes, submission: Submission, tensors: Mapping[str, Tensor]) -> bytes:
    """The architecture's weights as a file."""
    import safetensors.torch
    import torch

    from vetgate.architectures import ARCHITECTURES

    with torch.device("meta"):
        model = ARCHITECTURES[submission.architecture or ""](submission.input_shape, submission.n_classes)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    if expected != {key: value.shape for key, value in tensors.items()}:
        odd = sorted(set(expected) ^ set(tensors))[:5]
        raise DefenceError(
            f"expected the tensors of {submission.architecture}, got others {odd}; repair weights in place"
        )
    return safetensors.torch.save({key: value.contiguous().clone() for key, value in tensors.items()})


FORMAT = Format(
    accepts="safetensors weights for one of vetgate's architectures",
    sniff=sniff,
    inspect=inspect,
    says=says,
    canonical=canonical,
    form=Form(load=load, write=write),
    needs_architecture=True,
)

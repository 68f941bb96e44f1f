"""Loading a submitted model, in the sandbox only, and writing a repaired one. Nothing is unpickled or downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from vetgate.architectures import ARCHITECTURES
from vetgate.architectures import default_layer as default_layer_of_architecture
from vetgate.errors import BadSubmission, DefenceError, NotUnderstood, StoreError, VetgateError
from vetgate.formats.inspect import FORMATS, TEXTS, inspect_model, read_member
from vetgate.formats.manifest import MAX_BYTES
from vetgate.formats.onnx.graph import check_description, parse_model, read_graph
from vetgate.formats.onnx.module import build_module, default_layer
from vetgate.formats.onnx.write import write_back
from vetgate.formats.probe_model import probe
from vetgate.formats.safetensors_file import ADVICE, inspect_safetensors
from vetgate.formats.sniff import ACCEPTED, refusal
from vetgate.formats.submission import FILE, MAX_SIZE, Submission, dump_submission, parse_submission

TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model ready to be a Subject, in eval mode: logits out, `layer` the name of the features' module."""

    model: nn.Module
    layer: str
    classes: int
    softmax_stripped: bool


def load_model(directory: Path, submission: Submission) -> Loaded:
    """Read the model in `directory` and try it once; raises NotUnderstood when anything does not fit."""
    return load_members({submission.model: read_member(directory, submission.model)}, submission)


def described(members: Mapping[str, bytes]) -> Submission:
    """What the `submission.yaml` among `members` says; raises BadSubmission."""
    data = members.get(FILE)
    if data is None or len(data) > MAX_SIZE:
        got = "none" if data is None else "more"
        raise BadSubmission(f"{FILE}: expected one of at most {MAX_SIZE} bytes, got {got}; hand the model in again")
    try:
        return parse_submission(data.decode())
    except UnicodeDecodeError as error:
        raise BadSubmission(f"{FILE}: expected UTF-8 text, got other bytes; save it as UTF-8") from error


def load_members(members: Mapping[str, bytes], submission: Submission) -> Loaded:
    """The model whose file is among `members`, built from these very bytes; no path is read. Raises NotUnderstood."""
    if submission.model not in members:
        raise NotUnderstood(
            f"expected the model file {submission.model!r}, got only {sorted(members)}; add it to the submission"
        )
    data = _accepted(members[submission.model], submission)
    try:
        inspect_model(data, submission)
        model, layer, stripped = (_load_safetensors if submission.format == "safetensors" else _load_onnx)(
            data, submission
        )
        probe(model, layer, submission)
    except (VetgateError, MemoryError):
        # too little memory says nothing about the file
        raise
    except Exception as error:
        # torch and numpy meet numbers that an attacker chose: whatever they raise, the file was not understood
        raise NotUnderstood(
            f"expected a model that can be read and run, got {type(error).__name__}: {str(error)[:300]}; "
            f"hand in {ACCEPTED}"
        ) from error
    return Loaded(model, layer, submission.n_classes, stripped)


def write_repaired(
    directory: Path,
    submission: Submission,
    model: nn.Module,
    destination: Path,
    *,
    parent: str,
    name: str | None = None,
) -> None:
    """Write the new directory `destination`: the submission in `directory` with the weights of `model`.

    `model` is what load_model returned, or a copy, with other weights. What was written is loaded again and must
    compute the same. Raises DefenceError when `model` differs in more than weights, StoreError when writing fails.
    """
    data = _accepted(read_member(directory, submission.model), submission)
    tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise DefenceError("expected finite repaired weights, got NaN or infinity; the repair diverged, lower its rate")
    if submission.format == "safetensors":
        written = _safetensors_bytes(submission, tensors)
    else:
        written = write_back(data, tensors)
    repaired = submission.model_copy(update={"parent": parent, "name": name or submission.name})
    texts = {n: read_member(directory, n) for n in sorted(os.listdir(directory)) if TEXTS.fullmatch(n)}
    files = {FILE: dump_submission(repaired).encode(), submission.model: written, **texts}
    try:
        destination.mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"expected a new directory, got {destination} ({error}); give another one") from error
    try:
        _write_all(destination, files)
        _check_same(model, load_model(destination, repaired).model, submission)
    except BaseException:
        # a directory that is there is a whole submission
        shutil.rmtree(destination, ignore_errors=True)
        raise


def _write_all(destination: Path, files: Mapping[str, bytes]) -> None:
    try:
        for member, content in files.items():
            with (destination / member).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"expected to write the repaired model to {destination}, got {error}; make room") from error


def _accepted(data: bytes, submission: Submission) -> bytes:
    if len(data) > MAX_BYTES:
        raise NotUnderstood(
            f"expected at most {MAX_BYTES} bytes in {submission.model}, got more; hand in a smaller model"
        )
    reason = refusal(data)
    if submission.format not in FORMATS or reason is not None:
        got = reason or f"{submission.format!r}. Hand in {ACCEPTED}"
        raise NotUnderstood(f"expected a model in format {' or '.join(FORMATS)}, got {got}")
    return data


def _load_onnx(data: bytes, submission: Submission) -> tuple[nn.Module, str, bool]:
    graph = read_graph(parse_model(data))
    module = build_module(graph, channels_last=check_description(graph, submission))
    layer = default_layer(module) if submission.layer is None else module.find(submission.layer)
    if layer is None:
        raise NotUnderstood(f"expected a layer of the graph, got {submission.layer!r}; there are {_some(module)}")
    return module, layer, module.stripped is not None


def _load_safetensors(data: bytes, submission: Submission) -> tuple[nn.Module, str, bool]:
    if submission.architecture not in ARCHITECTURES:
        raise NotUnderstood(f"expected one of {list(ARCHITECTURES)}, got {submission.architecture!r}; name one")
    with torch.device("meta"):
        # nothing is allocated and no random number drawn for weights that are replaced at once
        model = ARCHITECTURES[submission.architecture](submission.input_shape, submission.n_classes)
    given = _fitting(data, model.state_dict(), submission.architecture)
    model.load_state_dict(given, assign=True)
    layer = submission.layer or default_layer_of_architecture(model)
    if layer not in dict(model.named_modules()):
        raise NotUnderstood(f"expected a layer of the network, got {layer!r}; there are {_some(model)}")
    return model.requires_grad_(True).eval(), layer, False


def _fitting(data: bytes, expected: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
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


def _safetensors_bytes(submission: Submission, tensors: Mapping[str, Tensor]) -> bytes:
    with torch.device("meta"):
        model = ARCHITECTURES[submission.architecture or ""](submission.input_shape, submission.n_classes)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    if expected != {key: value.shape for key, value in tensors.items()}:
        odd = sorted(set(expected) ^ set(tensors))[:5]
        raise DefenceError(
            f"expected the tensors of {submission.architecture}, got others {odd}; repair weights in place"
        )
    return safetensors.torch.save({key: value.contiguous().clone() for key, value in tensors.items()})


@torch.no_grad()
def _check_same(repaired: nn.Module, loaded: nn.Module, submission: Submission) -> None:
    x = torch.rand(4, *submission.input_shape, generator=torch.Generator().manual_seed(0))
    device = next(iter(repaired.state_dict().values()), x).device
    expected, written = repaired.eval()(x.to(device)).cpu(), loaded(x)
    gap = float((expected - written).abs().max() / expected.abs().max().clamp(min=1))
    if not gap <= TOLERANCE:
        raise DefenceError(
            f"expected a repair that changes weights only, got a network that differs by {gap:.2g} once written; "
            "fold what the repair added into the weights"
        )


def _some(model: nn.Module) -> str:
    return ", ".join([name for name, _ in model.named_modules() if name][-12:])

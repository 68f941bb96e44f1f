"""Loading a submitted model, in the sandbox only, and writing a repaired one. Nothing is unpickled or downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from vetgate.errors import BadSubmission, DefenceError, NotUnderstood, StoreError, VetgateError
from vetgate.formats.inspect import TEXTS, check_not_empty, read_member, read_model_file
from vetgate.formats.manifest import MAX_BYTES, Bytes
from vetgate.formats.probe_model import probe
from vetgate.formats.readers import form_of, format_of
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
    return load_members({submission.model: read_model_file(directory, submission.model, submission)}, submission)


def load_served(directory: Path, submission: Submission) -> Loaded:
    """The model in `directory` as what serves files of its format computes it; as `load_model` where torch does.

    Raises DefenceError, also when it is run, where that cannot run the file or computes something else.
    """
    data = read_model_file(directory, submission.model, submission)
    loaded, serve = load_members({submission.model: data}, submission), form_of(submission).serve
    return loaded if serve is None else replace(loaded, model=serve(data, submission))


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


def load_members(members: Mapping[str, Bytes], submission: Submission) -> Loaded:
    """The model whose file is among `members`, built from these very bytes; no path is read. Raises NotUnderstood."""
    if submission.model not in members:
        raise NotUnderstood(
            f"expected the model file {submission.model!r}, got only {sorted(members)}; add it to the submission"
        )
    load = form_of(submission).load
    data = checked_file(members[submission.model], submission)
    try:
        model, layer, stripped = load(data, submission)
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

    `model` is what load_model returned, or a copy, with other weights. No training set is named: the submitted one is
    not what these weights come from, and its poisoned rows would be held against every repair. What was written is
    loaded again and must compute the same. Raises DefenceError when `model` differs in more than weights, StoreError
    when writing fails.
    """
    data = checked_file(read_model_file(directory, submission.model, submission), submission)
    tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise DefenceError("expected finite repaired weights, got NaN or infinity; the repair diverged, lower its rate")
    written = form_of(submission).write(data, submission, tensors)
    # what these weights come from is said by `parent`, and not how a file was read
    origin = dict.fromkeys(("training_data", "submitted", "match_weights_by"))
    changes = {**origin, "parent": parent, "name": name or submission.name}
    repaired = submission.model_copy(update=changes)
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


def checked_file(data: Bytes, submission: Submission) -> Bytes:
    """A model file that is not empty, not too large, and begins as its format does; raises NotUnderstood."""
    if len(data) > MAX_BYTES:
        raise NotUnderstood(
            f"expected at most {MAX_BYTES} bytes in {submission.model}, got more; hand in a smaller model"
        )
    check_not_empty(data, submission)
    if not format_of(submission).sniff(data):
        got = refusal(data) or f"something else. Hand in {ACCEPTED}"
        raise NotUnderstood(f"expected a model in format {submission.format}, got {got}")
    return data


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

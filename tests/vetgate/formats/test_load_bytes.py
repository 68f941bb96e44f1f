"""A model from bytes in memory is judged as one from a directory, and nothing on disk is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from vetgate.architectures import ARCHITECTURES
from vetgate.errors import BadSubmission, NotUnderstood
from vetgate.formats import load
from vetgate.formats.load import described, load_members, load_model
from vetgate.formats.submission import MAX_SIZE, Submission

Submit = Callable[..., tuple[Path, Submission]]
WEIGHTS = {"format": "safetensors", "architecture": "small-cnn", "model": "model.safetensors"}


def members_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {k: v.contiguous() for k, v in ARCHITECTURES["small-cnn"]((1, 8, 8), 3).state_dict().items()}


@pytest.mark.parametrize("format", ["onnx", "safetensors"])
def test_bytes_and_directory_give_the_same_model(format: str, cnn: Any, submit: Submit) -> None:
    directory, submission = submit(cnn) if format == "onnx" else submit(save(weights()), **WEIGHTS)
    members = members_of(directory)
    from_directory = load_model(directory, submission)
    for path in directory.iterdir():
        path.unlink()

    from_bytes = load_members(members, described(members))

    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(from_bytes.model(x), from_directory.model(x))
    assert not from_bytes.model.training
    assert (from_bytes.layer, from_bytes.classes) == (from_directory.layer, from_directory.classes)


def test_bytes_are_refused_with_the_words_of_a_directory(submit: Submit) -> None:
    broken = {**weights(), "classifier.weight": torch.full((3, 5), torch.nan)}
    for model, fields in (
        (b"", WEIGHTS),
        (b"PK\x03\x04" + bytes(60), WEIGHTS),
        (b"\x80\x04\x95" + bytes(60), {}),
        (save(weights())[:-1], WEIGHTS),
        (save(weights()), WEIGHTS | {"classes": 4}),
        (save(broken), WEIGHTS),
        (save(weights()), WEIGHTS | {"format": "pickle"}),
    ):
        directory, submission = submit(model, **fields)
        with pytest.raises(NotUnderstood) as from_directory:
            load_model(directory, submission)
        with pytest.raises(NotUnderstood) as from_bytes:
            load_members(members_of(directory), submission)
        assert str(from_bytes.value) == str(from_directory.value)


def test_a_model_file_that_is_not_among_the_members_is_refused(submit: Submit) -> None:
    _, submission = submit(b"", **WEIGHTS)
    with pytest.raises(NotUnderstood, match=r"expected the model file 'model\.safetensors', got only \['other'\]"):
        load_members({"other": save(weights())}, submission)


def test_bytes_beyond_the_limit_of_a_file_are_refused(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, submission = submit(save(weights()), **WEIGHTS)
    monkeypatch.setattr(load, "MAX_BYTES", 1000)
    with pytest.raises(NotUnderstood, match="expected at most 1000 bytes"):
        load_members(members_of(directory), submission)


def test_too_little_memory_says_nothing_about_the_file(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(model: Any, layer: str, submission: Submission) -> None:
        raise MemoryError

    directory, submission = submit(save(weights()), **WEIGHTS)
    monkeypatch.setattr(load, "probe", exhausted)
    with pytest.raises(MemoryError):
        load_model(directory, submission)


def test_a_description_that_is_missing_too_large_or_no_text_is_refused() -> None:
    for members in ({}, {"submission.yaml": b"#" * (MAX_SIZE + 1)}, {"submission.yaml": b"name: \xff"}):
        with pytest.raises(BadSubmission, match=r"submission\.yaml: expected"):
            described(members)

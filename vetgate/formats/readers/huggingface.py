"""Hugging Face: a folder with `config.json`, `model.safetensors` and, mostly, `preprocessor_config.json`.

Only comes in: what is vetted is the ONNX graph that vetgate writes, with the processor's normalisation in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vetgate.errors import NotUnderstood
from vetgate.formats.readers import Format
from vetgate.formats.readers.onnx import FORMAT as ONNX
from vetgate.formats.readers.onnx import WRITTEN
from vetgate.formats.readers.safetensors import sniff

if TYPE_CHECKING:
    from vetgate.formats.submission import Submission

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


def inspect(members: Mapping[str, bytes], submission: Submission) -> None:
    """Read both descriptions and hold header and data of the weights against each other."""
    from vetgate.formats.safetensors_file import inspect_safetensors

    _described(members, submission)
    inspect_safetensors(members[submission.model])


def canonical(members: Mapping[str, bytes], submission: Submission) -> tuple[Submission, bytes]:
    """The graph as vetgate writes it."""
    from vetgate.formats.huggingface.network import to_onnx
    from vetgate.formats.plain_json import read_object

    described = _described(members, submission)
    data = to_onnx(read_object(members[CONFIG], CONFIG), members[submission.model], submission)
    return ONNX.canonical({WRITTEN: data}, described)


def says(members: Mapping[str, bytes], model: str) -> dict[str, Any]:
    """Size and classes as both descriptions say; what the processor does need not be said again."""
    from vetgate.formats.huggingface.network import labels_of
    from vetgate.formats.huggingface.processor import image_size
    from vetgate.formats.plain_json import read_object
    from vetgate.formats.safetensors_file import inspect_safetensors

    if CONFIG not in members:
        raise NotUnderstood(f"expected {CONFIG} beside {model}, got none; hand in the folder's files")
    inspect_safetensors(members[model])
    config = read_object(members[CONFIG], CONFIG)
    size = image_size(read_object(members[PROCESSOR], PROCESSOR)) if PROCESSOR in members else None
    channels = config.get("num_channels")
    return {"input_shape": [channels, *size] if size and channels else None, "classes": labels_of(config)}


def _described(members: Mapping[str, bytes], submission: Submission) -> Submission:
    from vetgate.formats.huggingface.network import check_config
    from vetgate.formats.huggingface.processor import processed
    from vetgate.formats.plain_json import read_object

    if CONFIG not in members:
        raise NotUnderstood(f"expected {CONFIG} beside {submission.model}, got none; hand in the folder's files")
    check_config(read_object(members[CONFIG], CONFIG), submission)
    if PROCESSOR in members:
        submission = processed(read_object(members[PROCESSOR], PROCESSOR), submission)
    return submission.model_copy(update={"model": WRITTEN, "format": "onnx", "architecture": None})


FORMAT = Format(
    accepts="a Hugging Face folder of an image classifier (config.json and model.safetensors)",
    sniff=sniff,
    inspect=inspect,
    says=says,
    canonical=canonical,
    belongs=lambda name: name in (CONFIG, PROCESSOR),
)

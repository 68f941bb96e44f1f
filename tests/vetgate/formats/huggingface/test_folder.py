"""A Hugging Face folder is the network that transformers makes of it, with the processor's normalisation in front."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

from vetgate.errors import NotUnderstood
from vetgate.formats.canonical import canonical
from vetgate.formats.huggingface.network import check_config
from vetgate.formats.huggingface.processor import processed
from vetgate.formats.inspect import inspect_bytes
from vetgate.formats.optional import import_builder
from vetgate.formats.submission import Normalization, Submission

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
NAMES = ["stop", "yield", "merge"]
PROCESSOR: dict[str, Any] = {
    "do_resize": True,
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "image_processor_type": "ViTImageProcessor",
}
CONFIG: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "id2label": dict(zip("012", NAMES, strict=True)),
}


def described(**changes: Any) -> Submission:
    fields: dict[str, Any] = {
        "name": "x",
        "supplier": "x",
        "task": "image-classification",
        "model": "model.safetensors",
        "format": "huggingface",
        "input_shape": [3, 16, 16],
        "classes": NAMES,
    }
    return Submission.model_validate(fields | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, bytes]]:
    """A small vision transformer, and the members of its folder."""
    transformers = import_builder("transformers", "huggingface")

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8,
        id2label=dict(enumerate(NAMES)),
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    directory = tmp_path_factory.mktemp("folder")
    model.save_pretrained(directory)
    members = {path.name: path.read_bytes() for path in directory.iterdir()}
    return model, members | {"preprocessor_config.json": json.dumps(PROCESSOR).encode()}


def test_what_is_written_is_what_transformers_computes(made: tuple[Any, dict[str, bytes]]) -> None:
    model, members = made
    written = canonical(members, described())
    assert written is not None and set(written.changes) == {"model", "format", "architecture"}
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    logits = onnxruntime.InferenceSession(written.data).run(None, {"image": x.numpy()})[0]
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        expected = model(pixel_values=(x - mean) / std).logits
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
    again = canonical(members, described())
    assert again is not None and again.data == written.data


def test_the_folder_is_taken_in_as_it_is(made: tuple[Any, dict[str, bytes]], tmp_path: Path) -> None:
    for name, data in made[1].items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "submission.yaml").write_text("read elsewhere")
    assert inspect_bytes(tmp_path, described()) == made[1]
    (tmp_path / "modeling.py").write_text("print()")
    with pytest.raises(NotUnderstood, match=r"modeling\.py"):
        inspect_bytes(tmp_path, described())


def test_weights_and_settings_fit_exactly(made: tuple[Any, dict[str, bytes]]) -> None:
    _, members = made
    tensors = safetensors.torch.load(members["model.safetensors"])
    first = next(iter(tensors))
    for changed in (
        {**tensors, "more": torch.zeros(2)},
        {name: tensor for name, tensor in tensors.items() if name != first},
        {**tensors, first: torch.zeros(*tensors[first].shape, 2)},
    ):
        with pytest.raises(NotUnderstood, match=r"expected exactly the weights|expected \d+ weights|written anew"):
            canonical({**members, "model.safetensors": safetensors.torch.save(changed)}, described())
    config = json.loads(members["config.json"])
    for field, value in (("hidden_size", 1 << 30), ("my_gate", True), ("num_channels", 1)):
        with pytest.raises(NotUnderstood, match=r"settings|num_channels"):
            canonical({**members, "config.json": json.dumps(config | {field: value}).encode()}, described())


def test_without_transformers_it_says_how_to_install_it(
    made: tuple[Any, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotUnderstood, match=r"vetgate\[huggingface\]"):
        canonical(made[1], described())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "auto_map, which bring code"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        ({"_attn_implementation": "kernels-community/own"}, "attn_implementation"),
        ({"model_type": "own"}, "ViTForImageClassification"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForImageClassification"),
        ({"problem_type": "multi_label_classification"}, "one label"),
        ({"id2label": {"0": "stop", "1": "merge", "2": "yield"}}, "id2label"),
        ({"id2label": {"0": "stop", "1": "yield"}}, "id2label of 3 classes"),
    ],
)
def test_other_code_and_other_classes_are_refused(changes: Mapping[str, Any], match: str) -> None:
    check_config(CONFIG, described())
    check_config(CONFIG, described(classes=3))
    with pytest.raises(NotUnderstood, match=match):
        check_config({**CONFIG, **changes}, described())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": {"height": 224, "width": 224}}, "as input_shape says"),
        ({"size": 224}, "as input_shape says"),
        ({"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}, "as input_shape says"),
        ({"do_rescale": False}, "rescaled by 1/255"),
        ({"rescale_factor": 1 / 127.5}, "rescaled by 1/255"),
        ({"image_mean": [0.5, 0.5]}, "image_mean|a channel"),
        ({"image_std": [0, 1, 1]}, "deviation"),
        ({"rescale_offset": True}, "rescale_offset"),
    ],
)
def test_what_a_processor_does_beyond_that_is_refused(changes: Mapping[str, Any], match: str) -> None:
    with pytest.raises(NotUnderstood, match=match):
        processed({**PROCESSOR, **changes}, described())


def test_the_processor_gives_normalisation_and_colours() -> None:
    assert processed(PROCESSOR, described()).normalization == Normalization(mean=MEAN, std=STD)
    flipped = {**PROCESSOR, "do_normalize": False, "do_flip_channel_order": True, "size": {"shortest_edge": 16}}
    assert processed(flipped, described()).color == "BGR"
    other = Normalization(mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(NotUnderstood, match="leave it out"):
        processed(PROCESSOR, described(normalization=other))

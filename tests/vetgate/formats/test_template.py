"""What a model file says of itself stands in the template; what it does not say is asked for, and never made up."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch

from tests.vetgate.formats.keras.keras_files import archive, dense, images, layer, sequential
from vetgate.architectures import ARCHITECTURES
from vetgate.errors import BadSubmission, NotUnderstood
from vetgate.formats.submission import Normalization, parse_submission
from vetgate.formats.template import look, name_for, template


def test_a_template_is_a_description_once_it_is_filled_in(cnn: onnx.ModelProto) -> None:
    said = look({"net.onnx": cnn.SerializeToString()}, "net.onnx")
    assert said == {"format": "onnx", "input_shape": [1, 8, 8], "classes": 3}
    text = template("signs", "net.onnx", said)
    with pytest.raises(BadSubmission, match=r"'supplier' is missing"):
        parse_submission(text)
    filled = parse_submission(text.replace("# supplier:", "supplier: Example Optics"))
    assert (filled.name, filled.input_shape, filled.classes) == ("signs", (1, 8, 8), 3)


def test_free_sizes_and_other_layouts_are_told(make_graph: Callable[..., Any], cnn: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("Flatten", ["x"], ["y"])
    last = make_graph([node], {}, shape=("N", 4, 4, 3), out=("N", 48)).SerializeToString()
    assert look({"m": last}, "m") == {"format": "onnx", "input_shape": [3, 4, 4], "layout": "NHWC", "classes": 48}
    free = make_graph([node], {}, shape=("N", 3, "H", "W"), out=("N", "K")).SerializeToString()
    said = look({"m": free}, "m")
    assert said == {"format": "onnx", "input_shape": None, "classes": None}
    assert "# input_shape:" in template("x", "m", said) and "\n# classes:" in template("x", "m", said)


def test_weights_are_those_of_an_architecture() -> None:
    for name, build in ARCHITECTURES.items():
        for side in (8, 32):
            with torch.device("meta"):
                names = build((1, side, side), 4).state_dict()
            data = safetensors.torch.save({each: torch.zeros(1) for each in names})
            assert look({"m": data}, "m") == {"format": "safetensors", "architecture": name}
    other = safetensors.torch.save({"w": torch.zeros(2)})
    assert look({"m": other}, "m")["architecture"] is None


def test_keras_files_say_what_goes_up_to_255() -> None:
    scaled = layer("Rescaling", "scale", scale=1 / 127.5, offset=-1)
    flat = layer("Flatten", "flat", data_format="channels_last")
    data = archive(sequential(images(), scaled, flat, dense("head", 3)), {})
    said = look({"m.keras": data}, "m.keras")
    assert (said["format"], said["input_shape"], said["classes"]) == ("keras", [2, 5, 4], 3)
    text = template("x", "m.keras", said).replace("# supplier:", "supplier: x")
    assert parse_submission(text).normalization == Normalization(mean=(0.0, 0.0), std=(0.003921569, 0.003921569))


def test_a_folder_names_its_classes() -> None:
    config = {"num_channels": 3, "id2label": {"0": "stop", "1": "yes"}}
    members = {
        "model.safetensors": safetensors.torch.save({"w": torch.zeros(2)}),
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps({"size": {"height": 8, "width": 9}}).encode(),
    }
    said = look(members, "model.safetensors")
    assert said == {"format": "huggingface", "input_shape": [3, 8, 9], "classes": ["stop", "yes"]}
    text = template("x", "model.safetensors", said).replace("# supplier:", "supplier: x")
    assert parse_submission(text).class_names == ("stop", "yes")


def test_what_is_no_model_is_refused_with_what_to_hand_in() -> None:
    code = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), code)
    for data in (code.getvalue(), b"plain text", b"\x89HDF\r\n\x1a\n", b"#!/bin/sh"):
        with pytest.raises(NotUnderstood, match=r"expected a model in m, got .*Hand in"):
            look({"m": data}, "m")


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/Traffic Signs.onnx", "traffic-signs"), ("Signs_v2/model.onnx", "signs-v2"), ("prod.x/é.onnx", "my-model")],
)
def test_names_come_from_the_file_or_its_directory(path: str, name: str, tmp_path: Path) -> None:
    assert name_for(tmp_path / path) == name

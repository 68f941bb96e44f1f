"""Two forms of one network have one digest of their weights, and two networks have two."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.models import FIELDS
from tests.vetgate.formats.keras import keras_files
from vetgate.architectures import ARCHITECTURES
from vetgate.formats.load import load_members
from vetgate.formats.networks.timm_network import build_timm
from vetgate.formats.optional import import_builder
from vetgate.formats.readers import format_of
from vetgate.formats.submission import Submission
from vetgate.formats.weights import weights_sha256

WEIGHTS = Submission.model_validate(FIELDS | {"classes": 3})
GRAPH = Submission.model_validate(
    FIELDS | {"model": "net.onnx", "format": "onnx", "architecture": None, "input_shape": (1, 8, 8), "classes": 3}
)


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES["small-cnn"](WEIGHTS.input_shape, 3).eval()


def test_a_graph_and_a_state_dict_of_one_network_have_one_digest(network: torch.nn.Module) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, 1, 8, 8),), file, dynamo=False)
    graph = load_members({"net.onnx": file.getvalue()}, GRAPH)
    written, data = format_of(GRAPH).canonical({"net.onnx": file.getvalue()}, GRAPH)
    state = load_members({WEIGHTS.model: safetensors.torch.save(network.state_dict())}, WEIGHTS)
    digests = {weights_sha256(m) for m in (network, graph.model, load_members({written.model: data}, written).model)}
    assert digests == {weights_sha256(state.model)}


def test_another_number_gives_another_digest(network: torch.nn.Module) -> None:
    before = weights_sha256(network)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-6
    assert weights_sha256(network) != before


def test_statistics_of_a_batch_normalisation_count() -> None:
    network = ARCHITECTURES["preact-resnet"]((1, 8, 8), 3)
    before = weights_sha256(network)
    network(torch.rand(4, 1, 8, 8))
    assert weights_sha256(network) != before


SIDE, CLASSES = 32, 3


@pytest.fixture(scope="module")
def residual() -> Iterator[torch.nn.Module]:
    """ResNet-18 with statistics of its own."""
    torch.manual_seed(0)
    network = build_timm("timm:resnet18", 3, CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    yield network


@pytest.mark.slow
def test_hugging_face_keras_and_a_state_dict_of_one_network_have_one_digest(
    residual: torch.nn.Module, tmp_path: Path
) -> None:
    state, file = residual.state_dict(), io.BytesIO()
    torch.save(state, file)
    fields = FIELDS | {"input_shape": (3, SIDE, SIDE), "classes": CLASSES, "architecture": None}
    forms = [
        (fields | {"model": "m.pth", "format": "state_dict", "architecture": "timm:resnet18"},
         {"m.pth": file.getvalue()}),
        (fields | {"model": "model.safetensors", "format": "huggingface"}, hugging_face(state, tmp_path)),
        (fields | {"model": "m.keras", "format": "keras"}, {"m.keras": keras(state)}),
    ]  # fmt: skip
    x, learned = torch.rand(2, 3, SIDE, SIDE), []
    for described, members in forms:
        submission = Submission.model_validate(described)
        written, data = format_of(submission).canonical(members, submission)
        model = load_members({written.model: data}, written).model
        torch.testing.assert_close(model(x), residual(x), rtol=1e-4, atol=1e-4)
        learned.append((weights_sha256(model), data))
    assert {digest for digest, _ in learned} == {weights_sha256(residual)}
    # these two are built by torch of the same layers, and are one file
    assert learned[0] == learned[1]


def hugging_face(state: Mapping[str, torch.Tensor], directory: Path) -> dict[str, bytes]:
    transformers = import_builder("transformers", "huggingface")
    sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
    config = transformers.ResNetConfig(layer_type="basic", num_labels=CLASSES, **sizes)
    model = transformers.ResNetForImageClassification(config)

    model.load_state_dict({name: state[timm_name(name)] for name in model.state_dict()})
    model.save_pretrained(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def timm_name(name: str) -> str:
    """What timm calls a tensor of ResNet that Hugging Face calls so."""
    _, *parts, last = name.split(".")
    conv, norm = ("downsample.0", "downsample.1") if "shortcut" in parts else ("conv", "bn")
    kind = conv if "convolution" in parts else norm
    match parts:
        case ["encoder", "stages", stage, "layers", block, *within]:
            own = f"{kind}{int(within[1]) + 1}" if within[0] == "layer" else kind
            return f"layer{int(stage) + 1}.{block}.{own}.{last}"
        case ["embedder", *_]:
            return f"{kind}1.{last}"
    return f"fc.{last}"


def keras(state: Mapping[str, torch.Tensor]) -> bytes:
    layers: list[dict[str, Any]] = [keras_files.images("images", (None, SIDE, SIDE, 3))]
    weights: dict[str, list[np.ndarray]] = {}

    def put(made: dict[str, Any], *given: str) -> str:
        layers.append(keras_files.called(made, *given))
        return str(made["config"]["name"])

    def padded(x: str, by: int, name: str) -> str:
        pad = keras_files.layer("ZeroPadding2D", f"{name}.pad", padding=[[by, by]] * 2, data_format="channels_last")
        return put(pad, x) if by else x

    def conv(x: str, name: str, norm: str, stride: int) -> str:
        kernel = state[f"{name}.weight"].numpy()
        weights[name] = [kernel.transpose(2, 3, 1, 0)]
        weights[norm] = [state[f"{norm}.{part}"].numpy() for part in ("weight", "bias", "running_mean", "running_var")]
        size = kernel.shape[2]
        made = keras_files.conv(name, kernel.shape[0], size, strides=[stride] * 2, use_bias=False)
        x = put(made, padded(x, size // 2, name))
        return put(keras_files.layer("BatchNormalization", norm, axis=[3], epsilon=1e-5, scale=True, center=True), x)

    def relu(x: str) -> str:
        return put(keras_files.layer("Activation", f"{x}.relu", activation="relu"), x)

    x = padded(relu(conv("images", "conv1", "bn1", 2)), 1, "pool")
    x = put(
        keras_files.layer("MaxPooling2D", "pool", pool_size=[3, 3], strides=[2, 2], padding="valid",
                          data_format="channels_last"), x)  # fmt: skip
    for stage in range(1, 5):
        for block in range(2):
            own, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = conv(relu(conv(x, f"{own}.conv1", f"{own}.bn1", stride)), f"{own}.conv2", f"{own}.bn2", 1)
            if f"{own}.downsample.0.weight" in state:
                x = conv(x, f"{own}.downsample.0", f"{own}.downsample.1", stride)
            x = relu(put(keras_files.layer("Add", f"{own}.sum"), y, x))
    x = put(keras_files.layer("GlobalAveragePooling2D", "mean", data_format="channels_last", keepdims=False), x)
    weights["fc"] = [state["fc.weight"].numpy().T, state["fc.bias"].numpy()]
    last = put(keras_files.dense("fc", CLASSES), x)
    return keras_files.archive(keras_files.functional(*layers, inputs="images", outputs=[last]), weights)

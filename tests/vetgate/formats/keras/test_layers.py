"""Each layer of Keras computes what Keras does: known answers by hand, in Keras' own order of axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.vetgate.formats.keras.keras_files import (
    Weights,
    archive,
    called,
    conv,
    dense,
    described,
    functional,
    images,
    layer,
    sequential,
    single,
)
from vetgate.errors import NotUnderstood
from vetgate.formats.canonical import canonical

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 5, 4, 2)).astype(np.float32)
HEAD = [layer("Flatten", "flat", data_format="channels_last"), dense("head", 3)]


def noise(*shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) * 0.3).astype(np.float32)


def computed(data: bytes, x: np.ndarray = IMAGES, **changes: Any) -> np.ndarray:
    submission = described(**changes)
    written = canonical({submission.model: data}, submission)
    assert written is not None and written.changes["model"] == "model.onnx" and written.changes["format"] == "onnx"
    session = onnxruntime.InferenceSession(written.data)
    logits: np.ndarray = session.run(None, {"image": x.transpose(0, 3, 1, 2)})[0]
    return logits


def through(last: Mapping[str, Any], mapped: np.ndarray, weights: Weights) -> None:
    """`last` applied to IMAGES gives `mapped`, as seen through a flattening and a linear layer."""
    values = mapped.reshape(len(mapped), -1)
    head = noise(values.shape[1], 3)
    data = archive(
        sequential(images(), dict(last), *HEAD), {**weights, "head": [head, np.array([1, 2, 3], np.float32)]}
    )
    expected = values.astype(np.float64) @ head + [1, 2, 3]
    np.testing.assert_allclose(computed(data), expected, rtol=0, atol=2e-5)


def windows(x: np.ndarray, size: int, stride: int, same: bool, filler: float) -> tuple[np.ndarray, list[int]]:
    """Windows (N, rows, columns, size, size, C) as TensorFlow lays them."""
    sides = []
    for length in x.shape[1:3]:
        made = -(-length // stride) if same else (length - size) // stride + 1
        added = max((made - 1) * stride + size - length, 0) if same else 0
        sides.append((made, added // 2, added - added // 2))
    (rows, top, bottom), (columns, left, right) = sides
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=filler)
    found = [
        [padded[:, r * stride : r * stride + size, c * stride : c * stride + size] for c in range(columns)]
        for r in range(rows)
    ]
    return np.stack([np.stack(row, 1) for row in found], 1), [rows, columns]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 3])
def test_a_convolution_lays_its_windows_as_tensorflow_does(padding: str, stride: int, size: int) -> None:
    kernel, bias = noise(size, size, 2, 4), noise(4)
    seen, _ = windows(IMAGES, size, stride, padding == "same", 0)
    expected = np.maximum(np.einsum("nrcijk,ijko->nrco", seen, kernel) + bias, 0)
    through(
        conv("c", 4, size, padding=padding, strides=[stride, stride], activation="relu"),
        expected,
        {"c": [kernel, bias]},
    )


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kind", ["MaxPooling2D", "AveragePooling2D"])
def test_pooling_does_not_count_what_padding_adds(padding: str, kind: str) -> None:
    seen, _ = windows(IMAGES, 3, 2, padding == "same", np.nan)
    expected = (np.nanmax if kind == "MaxPooling2D" else np.nanmean)(seen, axis=(3, 4))
    made = layer(kind, "p", pool_size=[3, 3], strides=[2, 2], padding=padding, data_format="channels_last")
    through(made, expected, {})


def test_convolutions_of_single_channels_keep_their_order() -> None:
    deep, point, bias = noise(3, 3, 2, 2), noise(1, 1, 4, 5), noise(5)
    seen, _ = windows(IMAGES, 3, 1, True, 0)
    each = np.einsum("nrcijk,ijkm->nrckm", seen, deep).reshape(3, 5, 4, 4)
    fields = {
        "kernel_size": [3, 3],
        "strides": [1, 1],
        "padding": "same",
        "dilation_rate": [1, 1],
        "depth_multiplier": 2,
    }
    fields |= {"data_format": "channels_last", "activation": "linear"}
    through(layer("DepthwiseConv2D", "d", use_bias=False, **fields), each, {"d": [deep]})
    separable = layer("SeparableConv2D", "s", filters=5, use_bias=True, **fields)
    through(separable, each @ point[0, 0] + bias, {"s": [deep, point, bias]})


def test_channels_are_normalised_and_rescaled() -> None:
    gamma, beta, mean, variance = noise(2), noise(2), noise(2), noise(2) ** 2 + 1
    normed = gamma * (IMAGES - mean) / np.sqrt(variance + 0.01) + beta
    fields = {"axis": -1, "epsilon": 0.01, "momentum": 0.9, "center": True, "scale": True}
    through(layer("BatchNormalization", "b", **fields), normed, {"b": [gamma, beta, mean, variance]})
    through(layer("Rescaling", "r", scale=2.0, offset=[-1, 3]), IMAGES * 2 + [-1, 3], {})
    fixed = layer("Normalization", "n", axis=[-1], invert=False, mean=[0.1, 0.2], variance=[4.0, 0.25])
    through(fixed, (IMAGES - [0.1, 0.2]) / [2, 0.5], {})


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (layer("ReLU", "a", max_value=0.5, negative_slope=0.0, threshold=0.0), lambda x: np.clip(x, 0, 0.5)),
        (layer("LeakyReLU", "a", negative_slope=0.1), lambda x: np.where(x < 0, 0.1 * x, x)),
        (layer("LeakyReLU", "a", alpha=0.3), lambda x: np.where(x < 0, 0.3 * x, x)),
        (layer("Activation", "a", activation="swish"), lambda x: x / (1 + np.exp(-x))),
        (layer("Activation", "a", activation="hard_silu"), lambda x: x * np.clip(x + 3, 0, 6) / 6),
        (layer("Softmax", "a", axis=-1), lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        (layer("Dropout", "a", rate=0.5), lambda x: x),
        (layer("RandomFlip", "a", mode="horizontal", data_format="channels_last"), lambda x: x),
        (layer("ZeroPadding2D", "a", padding=[[1, 0], [0, 2]], data_format="channels_last"),
         lambda x: np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))),
        (layer("Reshape", "a", target_shape=[4, -1, 2]), lambda x: x),
        (layer("GlobalMaxPooling2D", "a", keepdims=True, data_format="channels_last"),
         lambda x: x.max((1, 2), keepdims=True)),
    ],
)  # fmt: skip
def test_every_other_layer_is_what_it_is_in_keras(made: dict[str, Any], expected: Any) -> None:
    shift = layer("Rescaling", "shift", scale=4.0, offset=-2.0)
    head = noise(expected(IMAGES * 4 - 2).reshape(3, -1).shape[1], 3)
    data = archive(sequential(images(), shift, made, *HEAD), {"head": [head, np.zeros(3, np.float32)]})
    want = expected(IMAGES.astype(np.float64) * 4 - 2).reshape(3, -1) @ head
    np.testing.assert_allclose(computed(data), want, rtol=0, atol=2e-5)


def branched() -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    config = functional(
        called(images()),
        called(conv("one", 4, 3, padding="same"), "images"),
        called(conv("two", 4, 1), "images"),
        called(layer("Concatenate", "joined", axis=-1), "sum", "two"),
        called(layer("Add", "sum"), "one", "two"),
        called(layer("GlobalAveragePooling2D", "mean", data_format="channels_last", keepdims=False), "joined"),
        called(dense("head", 3), "mean"),
        inputs="images",
        outputs=["head"],
    )
    arrays = {"one": [noise(3, 3, 2, 4), noise(4)], "two": [noise(1, 1, 2, 4), noise(4)]}
    return config, {**arrays, "head": [noise(8, 3), noise(3)]}


def test_branches_are_joined_and_both_files_of_keras_give_the_same_bytes() -> None:
    config, weights = branched()
    seen, _ = windows(IMAGES, 3, 1, True, 0)
    one = np.einsum("nrcijk,ijko->nrco", seen, weights["one"][0]) + weights["one"][1]
    two = IMAGES @ weights["two"][0][0, 0] + weights["two"][1]
    mean = np.concatenate([one + two, two], -1).mean((1, 2))
    expected = mean @ weights["head"][0] + weights["head"][1]
    np.testing.assert_allclose(computed(archive(config, weights)), expected, atol=1e-5)
    h5 = described(model="m.h5")
    first, second = (
        canonical({"m.keras": archive(config, weights)}, described()),
        canonical({"m.h5": single(config, weights)}, h5),
    )
    assert first is not None and second is not None and first.data == second.data


def test_of_several_outputs_the_named_one_is_read() -> None:
    config, weights = branched()
    config["config"]["layers"].append(called(dense("other", 7), "mean"))
    config["config"]["output_layers"].append(["other", 0, 0])
    weights["other"] = [noise(8, 7), noise(7)]
    with pytest.raises(NotUnderstood, match=r"one output.*\['head', 'other'\]"):
        computed(archive(config, weights))
    assert computed(archive(config, weights), output="other", classes=7).shape == (3, 7)


def test_the_layer_of_the_features_is_called_as_in_keras() -> None:
    config, weights = branched()
    submission = described(layer="joined")
    written = canonical({"m.keras": archive(config, weights)}, submission)
    assert written is not None and written.changes["layer"] == "concat_1"

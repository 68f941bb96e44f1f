"""Keras files in the layout that Keras 3 and Keras 2 write, made by hand: neither library is needed."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from vetgate.formats.submission import Submission

Weights = Mapping[str, Sequence[np.ndarray]]


def described(**changes: Any) -> Submission:
    fields: dict[str, Any] = {
        "name": "x",
        "supplier": "x",
        "task": "image-classification",
        "model": "m.keras",
        "format": "keras",
        "input_shape": [2, 5, 4],
        "classes": 3,
    }
    return Submission.model_validate(fields | changes)


def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
    config = {"name": name, "trainable": True, "dtype": policy, **config}
    return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}


def images(name: str = "images", shape: Sequence[int | None] = (None, 5, 4, 2)) -> dict[str, Any]:
    return layer("InputLayer", name, batch_shape=list(shape), sparse=False, ragged=False)


def conv(name: str, filters: int, size: int, **config: Any) -> dict[str, Any]:
    fields = {
        "filters": filters, "kernel_size": [size, size], "strides": [1, 1], "padding": "valid", "groups": 1,
        "data_format": "channels_last", "dilation_rate": [1, 1], "activation": "linear", "use_bias": True,
    }  # fmt: skip
    return layer("Conv2D", name, **fields | config)


def dense(name: str, units: int, **config: Any) -> dict[str, Any]:
    return layer("Dense", name, **{"units": units, "activation": "linear", "use_bias": True} | config)


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    inner = {"name": "model", "layers": list(layers)}
    return {"module": "keras", "class_name": "Sequential", "config": inner, "registered_name": None}


def called(of: dict[str, Any], *names: str) -> dict[str, Any]:
    tensors = [
        {"class_name": "__keras_tensor__", "config": {"shape": [], "dtype": "float32", "keras_history": [name, 0, 0]}}
        for name in names
    ]
    args = [tensors] if len(tensors) > 1 else tensors
    nodes = [{"args": args, "kwargs": {}}] if names else []
    return {**of, "name": of["config"]["name"], "inbound_nodes": nodes}


def functional(*layers: dict[str, Any], inputs: str, outputs: Sequence[str]) -> dict[str, Any]:
    ends = [[name, 0, 0] for name in outputs]
    inner = {
        "name": "model",
        "layers": list(layers),
        "input_layers": [[inputs, 0, 0]],
        "output_layers": ends,
    }
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": inner,
        "registered_name": "Functional",
    }


def archive(config: Mapping[str, Any], weights: Weights, *, version: str = "3.9.0", **more: bytes) -> bytes:
    """A .keras file; arrays stand under the class of their layer, `weights` names them by layer."""
    stored, counts = io.BytesIO(), dict[str, int]()
    folders = {
        "DepthwiseConv2D": "depthwise_conv2d",
        "SeparableConv2D": "separable_conv2d",
        "BatchNormalization": "batch_normalization",
    }
    with h5py.File(stored, "w") as file:
        for each in config["config"]["layers"]:
            kind = folders.get(each["class_name"], each["class_name"].lower())
            if kind == "inputlayer":
                continue
            place = f"{kind}_{counts[kind]}" if counts.setdefault(kind, 0) else kind
            counts[kind] += 1
            group = file.create_group(f"layers/{place}/vars")
            group.attrs["name"] = each["config"]["name"]
            for number, array in enumerate(weights.get(each["config"]["name"], ())):
                group[str(number)] = array
        file["optimizer/vars/0"] = np.zeros((), np.int64)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as written:
        written.writestr("metadata.json", json.dumps({"keras_version": version, "date_saved": "2026-01-01@00:00:00"}))
        written.writestr("config.json", json.dumps(config))
        written.writestr("model.weights.h5", stored.getvalue())
        for name, data in more.items():
            written.writestr(name, data)
    return made.getvalue()


def single(config: Mapping[str, Any], weights: Weights, *, version: str = "2.12.0") -> bytes:
    """An .h5 file with its architecture; arrays stand under the name of their layer."""
    stored = io.BytesIO()
    with h5py.File(stored, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = version
        for each in config["config"]["layers"]:
            name = each["config"]["name"]
            group = file.create_group(f"model_weights/{name}")
            arrays = weights.get(name, ())
            names = [f"{name}/array_{number}:0" for number in range(len(arrays))]
            group.attrs["weight_names"] = [text.encode() for text in names]
            for text, array in zip(names, arrays, strict=True):
                group[text] = array
    return stored.getvalue()

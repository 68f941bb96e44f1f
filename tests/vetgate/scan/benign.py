"""Files as people have them, by name: those of which every byte is understood, and those that are merely harmless."""

from __future__ import annotations

import collections
import gzip
import io
import json
import pickle
import struct
import zlib
from pathlib import Path

import joblib
import numpy as np
import onnx
import safetensors.torch
import torch
from onnx import TensorProto, helper
from PIL import Image

from tests.vetgate.scan.assembled import tarred, zipped
from tests.vetgate.scan.malicious import Made

with torch.random.fork_rng():
    # once in many draws the raw bytes of weights read as a pickle
    torch.manual_seed(0)
    NET = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten())
README = b"""# A net

    import torch

```python
import torch
model = torch.load("model.pt")
```
Do not use !important things. Ask: is it ok? Templates such as {{ name }} are filled in; see `Net.__init__`.
"""
CONDA = b"""channels:
- conda-forge
dependencies:
- python=3.11
- pip:
  - torch==2.10
"""
MLMODEL = b"""artifact_path: model
flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_version: 1.21.0
  python_function:
    data: model.onnx
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.onnx
    python_version: 3.11.7
mlflow_version: 3.17.2
model_uuid: 0123456789abcdef
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3, 8, 8]}}]'
utc_time_created: '2026-11-30 10:00:00'
"""


def clean() -> dict[str, Made]:
    """Of these every byte is understood."""
    return _torch_files() | _pickles() | _arrays() | _graphs() | _texts() | _archives()


def harmless() -> dict[str, Made]:
    """These are not understood to their last byte, or hold what nobody has judged; none of them is malicious."""
    script, exported, example = io.BytesIO(), io.BytesIO(), (torch.zeros(1, 3, 5, 5),)
    torch.jit.save(torch.jit.trace(NET.eval(), example[0]), script)
    torch.export.save(torch.export.export(NET.eval(), example), exported)
    layers = [
        {"class_name": "Dense", "module": "keras.layers", "registered_name": None, "config": {"activation": "relu"}}
    ]
    model = {"class_name": "Sequential", "module": "keras", "registered_name": None, "config": {"layers": layers}}
    hdf5 = b"\x89HDF\r\n\x1a\n" + bytes(500) + b'{"class_name": "Dense", "config": {}}'
    keras = {"metadata.json": b"{}", "config.json": json.dumps(model).encode(), "model.weights.h5": hdf5}
    body = helper.make_graph([], "b", [], [])
    return {
        "script.pt": script.getvalue(),
        "exported.pt2": exported.getvalue(),
        "dense.keras": zipped(keras),
        "dense.h5": hdf5,
        "objects.npy": _saved(np.array([1, "a", None], dtype=object)),
        "objects.pkl": pickle.dumps(np.array([1, "a", None], dtype=object)),
        "code": {"train.py": b"import torch\n\nprint(torch.zeros(1))\n", "run.sh": b"#!/bin/sh\nls\n"},
        "picture.jpg": b"\xff\xd8\xff" + bytes(100),
        "truncated.png": _picture()[:-6],
        "random.bin": np.random.default_rng(0).bytes(5000),
        "truncated.pt": _torch_files()["float32.pt"][:-40],  # type: ignore[dict-item, index]
        "truncated.safetensors": safetensors.torch.save(NET.state_dict())[:-4],
        "truncated.gz": gzip.compress(b"text" * 100)[:-9],
        "control-flow.onnx": _model(helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)),
        "foreign.onnx": _model(helper.make_node("Own", ["x"], ["y"], domain="org.own")),
        "pointer.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n",
        "text.pt": b"text\n",
        "targets.yaml": b"net:\n  _target_: torch.nn.Linear\n",
        "compressed-twice.zip": zipped({"a.txt": bytes(60 << 20).replace(b"\0", b" ")}, 8),
    }  # fmt: skip


def _saved(array: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, array, allow_pickle=True)
    return made.getvalue()


def _torch(value: object, **options: object) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, **options)  # type: ignore[arg-type]
    return made.getvalue()


def _torch_files() -> dict[str, Made]:
    state = NET.state_dict()
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    optimizer = torch.optim.Adam(NET.parameters())
    NET(torch.zeros(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    shared = torch.arange(12.0)
    values: dict[str, object] = {
        "state.bin": state,
        "state-without-extension": state,
        "checkpoint.pth": {"state_dict": state, "epoch": 3, "lr": 1e-3, "name": "net", "best": None, "done": True},
        "model.pth": {"model": state, "optimizer": optimizer.state_dict(), "sizes": torch.Size([1, 2])},
        "parameters.pt": dict(NET.named_parameters()),
        "views.pt": {"whole": shared, "part": shared[3:7], "turned": shared.view(3, 4).T, "one": shared[5]},
        "empty-tensor.pt": {"none": torch.zeros(0), "scalar": torch.tensor(1.0)},
        "settings.pt": {"device": torch.device("cpu"), "dtype": torch.float16, "layers": [1, 2], "pair": (1, "a")},
        "empty.pt": {},
        "tensor.pt": torch.ones(3),
        "unicode.pt": {"größe": torch.ones(1)},
    }
    values |= {f"{str(dtype).removeprefix('torch.')}.pt": {"w": torch.ones(3, 2).to(dtype)} for dtype in dtypes}
    made: dict[str, Made] = {name: _torch(value) for name, value in values.items()}
    for protocol in (2, 3, 4, 5):
        made[f"protocol-{protocol}.pt"] = _torch(values["checkpoint.pth"], pickle_protocol=protocol)
    for name in ("state.bin", "checkpoint.pth", "views.pt", "parameters.pt", "empty-tensor.pt", "empty.pt"):
        made[f"legacy-{name}"] = _torch(values[name], _use_new_zipfile_serialization=False)
    return made


def _pickles() -> dict[str, Made]:
    value = {
        "numbers": [1, -2, 2**40, 10**30, 1.5, float("inf"), True, None, 1 + 2j],
        "texts": ("a", "ä\n'\"\\", "x" * 70_000, b"bytes", bytearray(b"more")),
        "sets": [{1, 2}, frozenset("ab")],
        "ordered": collections.OrderedDict(b=1, a=[]),
        "array": np.arange(6.0).reshape(2, 3),
        "turned": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        "flags": np.array([True, False]),
        "names": np.array(["a", "bc"]),
        "scalar": np.float32(3),
        "dtype": np.dtype("int8"),
        "times": np.zeros(2, "datetime64[s]"),
    }
    value["itself"] = value
    made: dict[str, Made] = {f"values-{number}.pkl": pickle.dumps(value, number) for number in range(6)}
    array = {"array": np.arange(200_000.0)}
    made |= {f"large-{number}.pkl": pickle.dumps(array, number) for number in (1, 2, 4, 5)}
    return made | {"several.pkl": pickle.dumps(1) + pickle.dumps({"a": 2})}


def _arrays() -> dict[str, Made]:
    packed, plain = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, x_train=np.zeros((5, 8, 8, 1), np.uint8), y_train=np.arange(5))
    np.savez(plain, a=np.arange(3.0), b=np.array(["one", "two"]))
    fields = np.zeros(3, dtype=[("a", "<f4"), ("b", "<i8", (2,))])
    return {
        "data.npz": packed.getvalue(),
        "plain.npz": plain.getvalue(),
        "array.npy": _saved(np.ones((2, 3), np.float32)),
        "fields.npy": _saved(fields),
        "sizes-twice.npz": _sizes_twice(_saved(np.arange(3.0))),
        "times.npy": _saved(np.zeros(2, "datetime64[s]")),
    }


def _picture() -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(made, "png")
    return made.getvalue()


def _sizes_twice(data: bytes) -> bytes:
    """An archive whose member has its sizes in the zip64 field too, as older versions of Python write it."""
    plain = zipped({"a.npy": data})
    extra = struct.pack("<HHQQ", 1, 16, len(data), len(data))
    directory, end = plain.index(b"PK\x01\x02"), plain.index(b"PK\x05\x06")
    local = plain[:28] + struct.pack("<H", len(extra)) + plain[30:35] + extra + plain[35:directory]
    offset = struct.pack("<I", directory + len(extra))
    return local + plain[directory : end + 16] + offset + plain[end + 20 :]


def _model(*nodes: onnx.NodeProto) -> bytes:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    value, result = helper.make_tensor_value_info("x", 1, [1]), helper.make_tensor_value_info("y", 1, [1])
    graph = helper.make_graph(list(nodes), "g", [value], [result], [weights])
    made: bytes = helper.make_model(graph, producer_name="test").SerializeToString()
    return made


def _graphs() -> dict[str, Made]:
    return {
        "model.onnx": _model(helper.make_node("Add", ["x", "w"], ["y"])),
        "attributes.onnx": _model(helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1], alpha=1.5, name="c")),
        "model.safetensors": safetensors.torch.save(NET.state_dict(), {"format": "pt"}),
        "half.safetensors": safetensors.torch.save({"w": torch.ones(3, dtype=torch.bfloat16)}),
    }


def _texts() -> dict[str, Made]:
    config = {"architectures": ["ResNetForImageClassification"], "id2label": {"0": "cat"}, "torch_dtype": "float32"}
    return {
        "README.md": README,
        "LICENSE": b"Copyright (c) someone. Permission is hereby granted.\n",
        "labels.txt": b"cat\ndog\nbird\n",
        "words.txt": b"cast\niron\n",
        "platforms.txt": b"ios\nandroid\ncos\nsin\n",
        "names.txt": "\ufeffGrößen\r\nNaïve\r\n".encode(),
        "table.csv": b"label,share\n0,0.5\n",
        "empty.txt": b"",
        "picture.png": _picture(),
        "conda.yaml": CONDA,
        "submission.yaml": b"name: net\nformat: onnx\ninput_shape: [3, 8, 8]\nclasses: 10\n",
        "values.json": json.dumps({"a": [1, 2, {"b": None}], "text": "{{ name }}"}).encode(),
        "lines.jsonl": b'{"a": 1}\n{"a": 2}\n',
        "huggingface": {
            "config.json": json.dumps(config).encode(),
            "preprocessor_config.json": json.dumps({"image_mean": [0.5], "size": {"height": 8}}).encode(),
            "model.safetensors": safetensors.torch.save(NET.state_dict(), {"format": "pt"}),
            "pytorch_model.bin": _torch(NET.state_dict()),
            ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
        },
        "mlflow": {
            "MLmodel": MLMODEL,
            "conda.yaml": CONDA,
            "requirements.txt": b"mlflow\nonnx\n",
            "model.onnx": _model(helper.make_node("Add", ["x", "w"], ["y"])),
        },
    }


def _archives() -> dict[str, Made]:
    texts = {"README.md": README, "labels/labels.txt": b"cat\ndog\n"}
    made = io.BytesIO()
    joblib.dump({"a": [1, 2.5, "x"]}, made, compress=("zlib", 3))
    return {
        "texts.zip": zipped(texts, 8),
        "weights.zip": zipped({"model.pt": _torch(NET.state_dict()), "a.npy": _saved(np.ones(3))}),
        "texts.tar": tarred(texts),
        "texts.tar.gz": tarred(texts, "w:gz"),
        "long-name.tar": tarred({f"{'a' * 80}/{'b' * 80}/{'ü' * 60}.txt": b"text\n"}),
        "values.pkl.gz": gzip.compress(pickle.dumps({"a": 1})),
        "values.pkl.z": zlib.compress(pickle.dumps({"a": list(range(100))})),
        "values.joblib": made.getvalue(),
    }


def written(folder: Path, files: dict[str, Made]) -> dict[str, Path]:
    """Write files and directories into a folder; their paths by name."""
    for name, made in files.items():
        path = folder / name
        if isinstance(made, bytes):
            path.write_bytes(made)
            continue
        path.mkdir()
        for inner, data in made.items():
            (path / inner).write_bytes(data)
    return {name: folder / name for name in files}

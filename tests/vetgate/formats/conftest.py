"""Small graphs made operator by operator, and submissions made of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vetgate.formats.submission import Submission, read_submission

Graph = Callable[..., onnx.ModelProto]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_models() -> Path:
    root = next(p for p in Path(__file__).parents if (p / "pyproject.toml").is_file())
    models = Path(os.environ.get("VETGATE_SHARED", root.parent / "shared")) / "models"
    if not models.is_dir():
        pytest.skip("the third-party models lie in VETGATE_SHARED or ../shared beside the checkout, neither is there")
    return models


@pytest.fixture
def make_graph() -> Graph:
    """A model from nodes and weights; the image is "x" and the logits are "y"."""

    def make(
        nodes: Sequence[NodeProto],
        weights: Mapping[str, np.ndarray],
        *,
        shape: Sequence[Any] = ("N", 1, 8, 8),
        out: Sequence[Any] | None = ("N", 3),
        opset: int = 17,
        ir_version: int = 8,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None if out is None else list(out))],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)

    return make


@pytest.fixture
def weights() -> Callable[..., np.ndarray]:
    """Float32 noise of a shape, the same in every run."""

    def noise(*shape: int, seed: int = 0) -> np.ndarray:
        return (np.random.default_rng((seed, *shape)).standard_normal(shape) * 0.3).astype(np.float32)

    return noise


@pytest.fixture
def cnn(make_graph: Graph, weights: Callable[..., np.ndarray]) -> onnx.ModelProto:
    """Normalisation, a convolution, pooling, two linear layers: 1x8x8 images, 3 classes."""
    node = helper.make_node
    return make_graph(
        [
            node("Sub", ["x", "mean"], ["n"], "normalise"),
            node("Conv", ["n", "cw", "cb"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Relu", ["c"], ["r"], "relu"),
            node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["p"], ["f"], "flatten"),
            node("Gemm", ["f", "hw", "hb"], ["h"], "hidden", transB=1),
            node("Relu", ["h"], ["hr"], "hidden_relu"),
            node("Gemm", ["hr", "ow", "ob"], ["y"], "out"),
        ],
        {
            "mean": np.array(0.5, np.float32),
            "cw": weights(4, 1, 3, 3),
            "cb": weights(4),
            "hw": weights(10, 64),
            "hb": weights(10),
            "ow": weights(10, 3),
            "ob": weights(3),
        },
    )


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., tuple[Path, Submission]]:
    """A submission directory with these model bytes; further fields replace those of submission.yaml."""
    count = iter(range(1000))

    def make(model: bytes | onnx.ModelProto, /, **fields: Any) -> tuple[Path, Submission]:
        directory = tmp_path / f"submission{next(count)}"
        directory.mkdir()
        described = {
            "name": "toy",
            "supplier": "tests",
            "task": "image-classification",
            "model": "model.onnx",
            "format": "onnx",
            "input_shape": [1, 8, 8],
            "classes": 3,
            "reference_data": None,
        } | fields
        (directory / "submission.yaml").write_text(yaml.safe_dump(described))
        data = model if isinstance(model, bytes) else model.SerializeToString()
        (directory / described["model"]).write_bytes(data)
        return directory, read_submission(directory)

    return make


@pytest.fixture
def run_reference() -> Callable[[bytes | onnx.ModelProto, np.ndarray], np.ndarray]:
    """What onnxruntime computes."""

    def run(model: bytes | onnx.ModelProto, x: np.ndarray) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        data = model if isinstance(model, bytes) else model.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        out: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
        return out

    return run

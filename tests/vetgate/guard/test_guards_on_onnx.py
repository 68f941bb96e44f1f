"""Guards that need no evidence, on a network that came as an ONNX graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper

import vetgate.guard  # noqa: F401 - registers the guards
from vetgate.contract import Samples, Subject
from vetgate.formats.load import load_model
from vetgate.formats.submission import read_submission
from vetgate.guard.contract import GUARDS, Guard

CLASSES, SHAPE = 3, (1, 8, 8)


@pytest.fixture
def given(tmp_path: Path) -> Subject:
    """A convolution, its normalisation, a ReLU and linear maps, of random weights."""
    stream = np.random.default_rng(0)
    weights = {"k": stream.standard_normal((4, 1, 3, 3)), "w": stream.standard_normal((144, 8)) / 4}
    weights |= {"v": stream.standard_normal((8, CLASSES)), "a": 3 * stream.standard_normal(CLASSES)}
    weights |= {"scale": np.ones(4), "shift": stream.standard_normal(4), "mean": np.zeros(4), "var": np.ones(4)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["o"]),
        helper.make_node("Add", ["o", "a"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])]
    ends += [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])]
    held = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    described = {"name": "toy", "supplier": "a test", "task": "image-classification", "model": "m.onnx"}
    described |= {"format": "onnx", "input_shape": list(SHAPE), "classes": CLASSES}
    (tmp_path / "submission.yaml").write_text(yaml.safe_dump(described))
    loaded = load_model(tmp_path, read_submission(tmp_path))
    x = torch.rand(120, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = loaded.model(x).argmax(1)
    return Subject(model=loaded.model, layer=loaded.layer, classes=CLASSES, clean=Samples(x, y), train=None)


@pytest.mark.parametrize("guard", [g for g in GUARDS.values() if g.role.uses is None], ids=lambda g: g.name)
def test_a_guard_is_fitted_and_scores(guard: Guard, given: Subject) -> None:
    assert given.clean is not None
    # a network of random weights bears little noise, and much amplifying
    lenient = {"budget": 0.6, "steps": 20} if guard.role.votes else {"spoiled": 0.2} if guard.role.normalisation else {}
    scores = guard.score(guard.fit(given, **lenient), given.model, given.clean.x[:10])
    assert bool(torch.isfinite(scores).all()) and len(scores.unique()) > 1

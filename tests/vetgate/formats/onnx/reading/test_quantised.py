"""Networks in whole numbers (QDQ), read as networks in float32 with the same weights and limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from tests.written import check_equal
from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.graph import parse_model, read_graph
from vetgate.formats.onnx.reading.quantised import dequantised
from vetgate.formats.readers import format_of

Make = Callable[..., Any]
node = helper.make_node
F32 = np.float32


@pytest.fixture
def quantised(make_graph: Make, weights: Make) -> Callable[..., Any]:
    """A convolution and a linear map with int8 weights; the limit of the activations between them is a Relu."""

    def make(**changes: np.ndarray) -> Any:
        held = {
            "xs": np.array(1 / 255, F32),
            "xz": np.array(0, np.uint8),
            "cw": (weights(4, 1, 3, 3) * 200).astype(np.int8),
            "cs": np.array([0.01, 0.02, 0.005, 0.01], F32),
            "cz": np.zeros(4, np.int8),
            "as": np.array(0.02, F32),
            "az": np.array(0, np.uint8),
            "w": (weights(256, 3) * 200).astype(np.int8),
            "ws": np.array(0.01, F32),
            "b": np.array([7, -300, 50], np.int32),
            "bs": np.array(0.0002, F32),
        } | changes
        nodes = [
            node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            node("DequantizeLinear", ["cw", "cs", "cz"], ["cd"], axis=0),
            node("Conv", ["xd", "cd"], ["c"], pads=[1, 1, 1, 1]),
            node("QuantizeLinear", ["c", "as", "az"], ["cq"]),
            node("DequantizeLinear", ["cq", "as", "az"], ["a"]),
            node("Flatten", ["a"], ["f"]),
            node("DequantizeLinear", ["w", "ws"], ["wd"]),
            node("DequantizeLinear", ["b", "bs"], ["bd"]),
            node("Gemm", ["f", "wd", "bd"], ["y"]),
        ]
        return make_graph(nodes, held, opset=13)

    return make


def test_weights_are_the_same_and_limits_stay(quantised: Make, submit: Make, run_reference: Make) -> None:
    model = quantised()
    directory, submission = submit(model)
    described, data = format_of(submission).canonical({"model.onnx": model.SerializeToString()}, submission)
    # images on the grid are not rounded; between the layers each value moves by half a step at most
    x = (torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    ours, theirs = run_reference(data, x.numpy()), run_reference(model, x.numpy())
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    matrix = np.abs(np.frombuffer(held["w"].raw_data, np.int8).astype(F32).reshape(256, 3) * F32(0.01)).sum(0)
    assert (np.abs(ours - theirs) <= 0.02 / 2 * matrix * 1.01).all()
    graph = dequantised(read_graph(parse_model(model.SerializeToString())))
    assert [n.op for n in graph.nodes] == ["Clip", "Conv", "Clip", "Flatten", "MatMul", "Add"]
    assert graph.changes == ("quantised activations are limited and not rounded",)
    check_equal(data, described, members={"model.onnx": model.SerializeToString()}, described=submission)
    assert directory.is_dir()


def test_a_limit_that_stands_for_a_relu_is_one(quantised: Make, submit: Make) -> None:
    _, submission = submit(quantised())
    _, data = format_of(submission).canonical({"model.onnx": quantised().SerializeToString()}, submission)
    graph = read_graph(parse_model(data))
    clip = next(n for n in graph.nodes if n.op == "Clip" and n.inputs[0] != graph.input)
    low, high = (float(graph.constants[name].value) for name in clip.inputs[1:])
    assert low == 0 and high == pytest.approx(0.02 * 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"as": np.array(-0.02, F32)}, "a constant positive scale"),
        ({"as": np.array([0.02, 0.01, 0.02, 0.02], F32), "az": np.zeros(4, np.uint8)}, "one scale and zero point"),
        ({"cs": np.array([0.01, 0.02], F32)}, "zero points of shape"),
        ({"xz": np.array(0, np.float32)}, "a whole zero point"),
    ],
)
def test_scales_that_do_not_fit_are_refused(changes: dict[str, np.ndarray], message: str, quantised: Make) -> None:
    with pytest.raises(NotUnderstood, match=message):
        dequantised(read_graph(parse_model(quantised(**changes).SerializeToString())))


def test_whole_numbers_that_are_computed_with_are_refused(quantised: Make) -> None:
    model = quantised()
    model.graph.node[5].CopyFrom(node("Cast", ["cq"], ["a"], to=1))
    with pytest.raises(NotUnderstood, match="between QuantizeLinear and DequantizeLinear only"):
        dequantised(read_graph(parse_model(model.SerializeToString())))

"""What onnxruntime computes of a file counts, and a file on which it and our reading differ has no figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vetgate.errors import DefenceError
from vetgate.formats.load import load_model, load_served
from vetgate.formats.onnx.graph import parse_model, read_graph
from vetgate.formats.onnx.module import build_module
from vetgate.formats.onnx.rewriting.settle import settle
from vetgate.formats.onnx.runtime import RuntimeModule
from vetgate.probe import logits


def images(count: int = 5, *shape: int) -> torch.Tensor:
    return torch.rand(count, *(shape or (1, 8, 8)), generator=torch.Generator().manual_seed(2))


def test_its_outputs_are_those_of_onnxruntime(
    cnn: onnx.ModelProto, submit: Callable[..., Any], run_reference: Callable[..., np.ndarray]
) -> None:
    served = load_served(*submit(cnn))
    assert (served.layer, served.classes, served.softmax_stripped) == ("hidden_relu", 3, False)
    assert isinstance(served.model, RuntimeModule)
    assert np.array_equal(logits(served.model, images()).numpy(), run_reference(cnn, images().numpy()))


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_a_final_softmax_is_run_and_changes_no_answer(
    kind: str, cnn: onnx.ModelProto, submit: Callable[..., Any]
) -> None:
    cnn.graph.node[-1].output[0] = "logits"
    cnn.graph.node.append(helper.make_node(kind, ["logits"], ["y"], "last"))
    directory, submission = submit(cnn)
    loaded = load_model(directory, submission)
    given = load_served(directory, submission).model(images())
    assert loaded.softmax_stripped and torch.equal(given.argmax(1), loaded.model(images()).argmax(1))
    torch.testing.assert_close((given.exp() if kind == "LogSoftmax" else given).sum(1), torch.ones(5))


def test_a_graph_for_batches_of_one_size_takes_any_number_of_images(
    cnn: onnx.ModelProto, submit: Callable[..., Any]
) -> None:
    free = load_served(*submit(cnn)).model(images())
    for size in (1, 3, 7):
        cnn.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
        cnn.graph.output[0].type.tensor_type.shape.dim[0].dim_value = size
        torch.testing.assert_close(load_served(*submit(cnn)).model(images()), free)


@pytest.mark.parametrize("change, differs", [(1e-6, False), (3e-4, True), (float("nan"), True)])
def test_it_differs_from_a_ten_thousandth_of_the_spread_on(change: float, differs: bool, cnn: onnx.ModelProto) -> None:
    graph, _ = settle(read_graph(parse_model(cnn.SerializeToString())), (1, 8, 8))
    ours = build_module(graph, strip=False)
    spread = float(np.ptp(ours(images()).detach().numpy()))
    with torch.no_grad():
        ours.get_submodule("out").bias += change * spread
    held = RuntimeModule(cnn.SerializeToString(), ours)
    if differs:
        with pytest.raises(DefenceError, match="outputs that are off by"):
            held(images())
    else:
        assert held(images()).shape == (5, 3)


def test_a_file_that_onnxruntime_cannot_run_is_an_error(cnn: onnx.ModelProto, submit: Callable[..., Any]) -> None:
    # no weight and no operator is wrong, only what the file says of a value between two of them
    cnn.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.INT64, ["N", 4, 8, 8]))
    directory, submission = submit(cnn)
    assert load_model(directory, submission).classes == 3
    with pytest.raises(DefenceError, match=r"expected a file that onnxruntime can run, got: .*Type Error"):
        load_served(directory, submission)

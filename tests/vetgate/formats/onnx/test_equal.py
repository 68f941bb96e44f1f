"""What is written must compute what was submitted, in onnxruntime with and without its optimisations, and in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.written import check_equal
from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.equal import COUNT, probes
from vetgate.formats.readers import format_of

node = helper.make_node


def equal(made: bytes, described: Any, data: bytes, submission: Any, images: torch.Tensor | None = None) -> None:
    check_equal(made, described, members={submission.model: data}, described=submission, images=images)


def written(model: onnx.ModelProto, submit: Callable[..., Any], **fields: Any) -> tuple[Any, bytes, bytes, Any]:
    directory, submission = submit(model, **fields)
    data = (directory / "model.onnx").read_bytes()
    described, made = format_of(submission).canonical({"model.onnx": data}, submission)
    return described, made, data, submission


def test_a_sound_file_is_equal_to_its_canonical_form(cnn: onnx.ModelProto, submit: Callable[..., Any]) -> None:
    described, made, data, submission = written(cnn, submit)
    check_equal(made, described)
    equal(made, described, data, submission, torch.rand(9, 1, 8, 8))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_file_for_batches_of_one_size_is_run_at_that_size(
    batch: int, cnn: onnx.ModelProto, submit: Callable[..., Any]
) -> None:
    for info in (*cnn.graph.input, *cnn.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = batch
    described, made, data, submission = written(cnn, submit)
    equal(made, described, data, submission)


def test_a_file_that_takes_channels_last_is_given_them_so(
    make_graph: Callable[..., Any], weights: Callable[..., np.ndarray], submit: Callable[..., Any]
) -> None:
    nodes = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w", "b"], ["y"])]
    model = make_graph(nodes, {"w": weights(60, 3), "b": weights(3)}, shape=("N", 4, 5, 3))
    described, made, data, submission = written(model, submit, input_shape=[3, 4, 5])
    equal(made, described, data, submission)


def test_a_file_is_given_the_pixels_that_it_takes(cnn: onnx.ModelProto, submit: Callable[..., Any]) -> None:
    described, made, data, submission = written(cnn, submit, normalization={"mean": [0.3], "std": [0.2]})
    assert described.normalization is None
    equal(made, described, data, submission)
    plain = submission.model_copy(update={"normalization": None})
    with pytest.raises(NotUnderstood, match="the submitted file"):
        equal(made, described, data, plain)


@pytest.mark.parametrize("change, differs", [(1e-6, False), (1e-2, True)])
def test_a_submitted_file_that_computes_something_else_is_refused(
    change: float, differs: bool, cnn: onnx.ModelProto, submit: Callable[..., Any]
) -> None:
    described, made, _, submission = written(cnn, submit)
    bias = next(t for t in cnn.graph.initializer if t.name == "ob")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([change, 0, 0]), "ob"))
    other = cnn.SerializeToString()
    if differs:
        with pytest.raises(
            NotUnderstood, match=r"expected the submitted file in onnxruntime to compute .* off by 0.01"
        ):
            equal(made, described, other, submission)
    else:
        equal(made, described, other, submission)


def test_a_submitted_file_that_onnxruntime_cannot_run_is_refused(
    cnn: onnx.ModelProto, submit: Callable[..., Any]
) -> None:
    # no weight and no operator is wrong, only what the file says of a value between two of them
    cnn.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.INT64, ["N", 4, 8, 8]))
    described, made, data, submission = written(cnn, submit)
    check_equal(made, described)
    with pytest.raises(NotUnderstood, match=r"expected the submitted file to run: .*Type Error"):
        equal(made, described, data, submission)


def test_outputs_that_are_no_numbers_are_refused(cnn: onnx.ModelProto, submit: Callable[..., Any]) -> None:
    cnn.graph.node[-1].output[0] = "l"
    cnn.graph.initializer.append(numpy_helper.from_array(np.float32(100), "large"))
    cnn.graph.node.extend([node("Mul", ["l", "large"], ["m"]), node("Exp", ["m"], ["e"]), node("Exp", ["e"], ["y"])])
    described, made, *_ = written(cnn, submit)
    with pytest.raises(NotUnderstood, match="expected finite outputs for every image"):
        check_equal(made, described)


def test_the_images_are_known_random_extreme_and_stamped_ones() -> None:
    known = torch.full((2, 3, 12, 12), 0.25)
    x = probes((3, 12, 12), known)
    assert x.shape == (COUNT, 3, 12, 12) and float(x.min()) >= 0 and float(x.max()) <= 1
    assert torch.equal(x[:2], known)
    flat = [float(image.min()) for image in x if image.min() == image.max()]
    assert flat == [0.25, 0.25, 0.0, 1.0, 0.5]
    assert bool((x[-4:-2, :, -2:, -2:] == 1).all())
    assert torch.equal(x, probes((3, 12, 12), known))


def test_small_images_are_stamped_too() -> None:
    assert probes((1, 1, 1)).shape == (COUNT, 1, 1, 1)

"""What exporters and suppliers do to a file, and that what is written of it computes the same logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.written import check_equal
from vetgate.errors import BadSubmission, NotUnderstood
from vetgate.formats.inspect import inspect_bytes
from vetgate.formats.load import Loaded, load_members
from vetgate.formats.onnx.table import OPSETS
from vetgate.formats.readers import format_of
from vetgate.formats.submission import Submission, parse_submission

Make = Callable[..., Any]
node = helper.make_node


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def written(submit: Make) -> Callable[..., tuple[Loaded, Submission, bytes]]:
    """The model as it is loaded from the file that vetgate writes, the description of that, and its bytes."""

    def read(model: Any, **fields: Any) -> tuple[Loaded, Submission, bytes]:
        directory, submission = submit(model, **fields)
        described, data = format_of(submission).canonical(inspect_bytes(directory, submission), submission)
        return load_members({described.model: data}, described), described, data

    return read


def gap(loaded: Loaded, expected: np.ndarray, x: torch.Tensor) -> float:
    with torch.no_grad():
        ours = loaded.model(x).numpy()
    return float(np.abs(ours - expected).max() / np.ptp(expected))


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 18, 21, 23, OPSETS.stop - 1])
def test_every_opset_is_read(opset: int, cnn: Any, written: Make, run_reference: Make) -> None:
    cnn.opset_import[0].version = opset
    cnn.ir_version = 10
    x = images(3, 1, 8, 8)
    assert gap(written(cnn)[0], run_reference(cnn, x.numpy()), x) < 1e-5


@pytest.mark.parametrize("free", [-1, 0])
def test_sizes_that_vary_are_those_of_the_submission(free: int, cnn: Any, written: Make) -> None:
    plain, _, _ = written(cnn)
    for dim in cnn.graph.input[0].type.tensor_type.shape.dim[:4]:
        dim.dim_value = free
    assert torch.equal(written(cnn)[0].model(images(3, 1, 8, 8)), plain.model(images(3, 1, 8, 8)))


def test_the_output_that_is_named_is_read_and_the_rest_dropped(cnn: Any, written: Make) -> None:
    plain, _, data = written(cnn)
    cnn.graph.node.append(node("Abs", ["hr"], ["size"]))
    cnn.graph.output.insert(0, helper.make_tensor_value_info("size", TensorProto.FLOAT, ["N", 10]))
    with pytest.raises(NotUnderstood, match=r"\['size', 'y'\]; name the one with the logits as `output`"):
        written(cnn)
    with pytest.raises(NotUnderstood, match=r"expected an output 'z' as submission\.yaml says"):
        written(cnn, output="z")
    loaded, described, again = written(cnn, output="y")
    assert again == data and described.output is None
    assert torch.equal(loaded.model(images(2, 1, 8, 8)), plain.model(images(2, 1, 8, 8)))


def test_logits_with_sides_of_one_are_logits(make_graph: Make, weights: Make, written: Make) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("GlobalAveragePool", ["c"], ["y"])]
    model = make_graph(nodes, {"w": weights(3, 1, 3, 3)}, out=("N", 3, 1, 1))
    assert written(model)[0].model(images(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_are_computed_in_float32(kind: Any, cnn: Any, written: Make, run_reference: Make) -> None:
    low = onnx.ModelProto.FromString(cnn.SerializeToString())
    for tensor in low.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for tensor, given in zip(cnn.graph.initializer, low.graph.initializer, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(given).astype(np.float32), tensor.name))
    for info in (*low.graph.input, *low.graph.output):
        info.type.tensor_type.elem_type = low.graph.initializer[0].data_type
    x = images(3, 1, 8, 8)
    loaded, described, data = written(low)
    assert gap(loaded, run_reference(cnn, x.numpy()), x) < 1e-5
    given = described.model_copy()
    check_equal(data, described, members={given.model: low.SerializeToString()}, described=given)


def test_casts_to_half_and_back_are_none(cnn: Any, written: Make) -> None:
    plain, _, data = written(cnn)
    cnn.graph.node[1].input[0] = "again"
    cnn.graph.node.insert(1, node("Cast", ["half"], ["again"], to=TensorProto.FLOAT))
    cnn.graph.node.insert(1, node("Cast", ["n"], ["half"], to=TensorProto.FLOAT16))
    assert written(cnn)[2] == data and plain.classes == 3


def test_pixels_are_made_what_the_submission_says(make_graph: Make, weights: Make, written: Make) -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), node("Conv", ["t", "c"], ["f"])]
    nodes += [node("GlobalAveragePool", ["f"], ["p"]), node("Flatten", ["p"], ["y"])]
    kernel = weights(3, 3, 3, 3)
    model = make_graph(nodes, {"c": kernel}, shape=("N", None, None, 3))
    said = {"normalization": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}, "color": "BGR", "layout": "NHWC"}
    loaded, described, data = written(model, input_shape=[3, 6, 7], **said)
    x = images(2, 3, 6, 7)
    mean, std = (torch.tensor(said["normalization"][key]).view(3, 1, 1) for key in ("mean", "std"))  # type: ignore[index]
    expected = torch.nn.functional.conv2d((x.flip(1) - mean) / std, torch.from_numpy(kernel)).mean((2, 3))
    torch.testing.assert_close(loaded.model(x), expected)
    left = described.model_dump()
    assert [left[key] for key in (*said, "output")] == [None] * 4
    # what was written holds all of it, and is written as it is
    assert format_of(described).canonical({described.model: data}, described) == (described, data)


def test_the_layout_decides_where_both_fit(make_graph: Make, weights: Make, written: Make) -> None:
    nodes = [node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]
    model = make_graph([node("Mul", ["x", "w"], ["m"]), *nodes], {"w": weights(1)}, shape=("N", 3, 3, 3))
    model.graph.node[1].input[0] = "m"
    x = images(2, 3, 3, 3)
    first = written(model, input_shape=[3, 3, 3], layer="input")[0].model(x)
    last = written(model, input_shape=[3, 3, 3], layer="input", layout="NHWC")[0].model(x.permute(0, 3, 1, 2))
    torch.testing.assert_close(first, last)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("normalization: {mean: [0.5], std: [0.5]}", "one number for each of 3 channels"),
        ("normalization: {mean: [0, 0, 0], std: [0, 1, 1]}", "std"),
        ("normalization: {mean: [0, 0, .nan], std: [1, 1, 1]}", "mean"),
        ("layout: CHWN", "layout"),
        ("color: YUV", "color"),
    ],
)
def test_what_no_pixels_are_like_is_refused(said: str, message: str) -> None:
    plain = "name: a\nsupplier: b\ntask: image-classification\nmodel: m.onnx\nformat: onnx\ninput_shape: [3, 8, 8]\n"
    with pytest.raises(BadSubmission, match=message):
        parse_submission(f"{plain}classes: 3\nreference_data: null\n{said}\n")


def test_everything_that_is_missing_is_named_at_once(cnn: Any, submit: Make) -> None:
    cnn.graph.node[2].op_type = cnn.graph.node[6].op_type = "NonZero"
    cnn.graph.node[3].op_type = "TopK"
    with pytest.raises(NotUnderstood, match=r"got 2 x NonZero, 1 x TopK of opset 17.*torch\.onnx\.export\("):
        inspect_bytes(*submit(cnn))


@pytest.fixture
def apart(cnn: Any, submit: Make) -> Callable[..., Any]:
    """A submission whose weights lie in a file beside it, which `change` may alter with the model."""

    def make(change: Callable[[Any, bytearray], None] = lambda model, data: None, name: str = "model.onnx.data") -> Any:
        data = bytearray()
        for tensor in cnn.graph.initializer:
            raw = numpy_helper.to_array(tensor).tobytes()
            places = {"location": name, "offset": str(len(data)), "length": str(len(raw))}
            data += raw + bytes(-len(raw) % 64)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in places.items():
                tensor.external_data.add(key=key, value=value)
        change(cnn, data)
        directory, submission = submit(cnn)
        (directory / "model.onnx.data").write_bytes(bytes(data))
        return directory, submission

    return make


def test_weights_beside_the_model_come_into_one_file(cnn: Any, apart: Make, written: Make) -> None:
    _, _, expected = written(cnn)
    directory, submission = apart()
    members = inspect_bytes(directory, submission)
    assert set(members) == {"model.onnx", "model.onnx.data"}
    assert format_of(submission).canonical(members, submission)[1] == expected


def moved(key: str, value: str) -> Callable[[Any, bytearray], None]:
    def change(model: Any, data: bytearray) -> None:
        for pair in model.graph.initializer[2].external_data:
            if pair.key == key:
                pair.value = value

    return change


def unnamed(model: Any, data: bytearray) -> None:
    data += b"payload"


def between(model: Any, data: bytearray) -> None:
    data[4:8] = b"evil"  # the first tensor is one number, and zeros follow


def cut(model: Any, data: bytearray) -> None:
    del data[-100:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved("location", "../../etc/passwd"), "by its plain name"),
        (moved("location", "/etc/passwd"), "by its plain name"),
        (moved("location", "other.data"), "'other.data' beside the model"),
        (moved("offset", "-4"), "by its plain name"),
        (moved("offset", "0"), "one after the other"),
        (moved("offset", "64000"), "every byte of"),
        (moved("length", "20"), "expected 16 bytes"),
        (unnamed, "every byte of"),
        (between, "every byte of"),
        (cut, "one after the other"),
    ],
)
def test_bytes_beside_the_model_that_are_no_tensor_are_refused(change: Any, message: str, apart: Make) -> None:
    with pytest.raises(NotUnderstood, match=message):
        inspect_bytes(*apart(change))


def test_a_file_of_weights_that_the_model_does_not_name_is_refused(cnn: Any, submit: Make) -> None:
    directory, submission = submit(cnn)
    (directory / "model.onnx.data").write_bytes(bytes(64))
    with pytest.raises(NotUnderstood, match=r"weights of the model in model\.onnx\.data, got none"):
        inspect_bytes(directory, submission)

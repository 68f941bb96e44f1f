"""A repaired model is the submitted graph with other numbers, and computes what the repaired module computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save
from torch import nn

import vetgate.repair  # noqa: F401 - registers the methods
from vetgate.architectures import ARCHITECTURES
from vetgate.contract import REPAIRS, Samples, Subject
from vetgate.errors import DefenceError, NotUnderstood, StoreError
from vetgate.formats.inspect import inspect_bytes
from vetgate.formats.load import load_model, write_repaired
from vetgate.formats.manifest import hash_directory
from vetgate.formats.readers import format_of
from vetgate.formats.submission import Submission, read_submission

PARENT = "ab" * 32


@torch.no_grad()
def shift_every_tensor(model: nn.Module) -> None:
    torch.manual_seed(5)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand(tensor.shape)


def assert_round_trip(directory: Path, submission: Submission, model: nn.Module, destination: Path) -> onnx.ModelProto:
    write_repaired(directory, submission, model, destination, parent=PARENT)
    repaired = read_submission(destination)
    assert (repaired.name, repaired.parent) == (submission.name, PARENT)
    inspect_bytes(destination, repaired)
    x = torch.rand(5, *submission.input_shape)
    torch.testing.assert_close(load_model(destination, repaired).model(x), model(x), rtol=0, atol=1e-6)
    return onnx.load_from_string((destination / repaired.model).read_bytes())


def canonical(model: onnx.ModelProto, submission: Submission) -> onnx.ModelProto:
    _, data = format_of(submission).canonical({submission.model: model.SerializeToString()}, submission)
    return onnx.load_from_string(data)


def test_an_untouched_model_is_written_byte_for_byte_alike(
    cnn: Any, submit: Callable[..., Any], tmp_path: Path
) -> None:
    directory, submission = submit(canonical(cnn, submit(cnn)[1]))
    write_repaired(directory, submission, load_model(directory, submission).model, tmp_path / "out", parent=PARENT)
    before, after = hash_directory(directory).digests, hash_directory(tmp_path / "out").digests
    assert before["model.onnx"] == after["model.onnx"]
    assert before["submission.yaml"] != after["submission.yaml"]


def test_how_the_tensors_of_the_submitted_file_were_matched_is_not_said_of_repaired_ones(
    cnn: Any, submit: Callable[..., Any], tmp_path: Path
) -> None:
    directory, submission = submit(canonical(cnn, submit(cnn)[1]))
    given = submission.model_copy(update={"match_weights_by": "order", "submitted": PARENT})
    write_repaired(directory, given, load_model(directory, given).model, tmp_path / "out", parent=PARENT)
    assert read_submission(tmp_path / "out").match_weights_by is None


def test_only_numbers_change(
    cnn: Any, submit: Callable[..., Any], tmp_path: Path, run_reference: Callable[..., np.ndarray]
) -> None:
    directory, submission = submit(cnn)
    loaded = load_model(directory, submission)
    shift_every_tensor(loaded.model)
    written = assert_round_trip(directory, submission, loaded.model, tmp_path / "out")
    plain = canonical(cnn, submission)
    assert written.graph.node == plain.graph.node
    assert [t.name for t in written.graph.initializer] == [t.name for t in plain.graph.initializer]
    x = torch.rand(3, 1, 8, 8)
    np.testing.assert_allclose(run_reference(written, x.numpy()), loaded.model(x).detach(), rtol=1e-4, atol=1e-4)


def test_factors_of_channels_are_folded_into_a_graph(cnn: Any, submit: Callable[..., Any], tmp_path: Path) -> None:
    directory, submission = submit(cnn)
    loaded = load_model(directory, submission)
    classes = loaded.model(torch.rand(1, *submission.input_shape)).shape[1]
    clean = Samples(torch.rand(2 * classes, *submission.input_shape), torch.arange(classes).repeat(2))
    subject = Subject(model=loaded.model, layer=loaded.layer, classes=classes, clean=clean)
    found = REPAIRS["neural_mask_tuning"](subject, steps=5)
    assert_round_trip(directory, submission, found.model, tmp_path / "out")
    assert not torch.allclose(found.model(clean.x), loaded.model(clean.x), atol=1e-3)


@pytest.mark.parametrize(
    "held", ["MatMul and Add", "Constant nodes", "transposed", "shared", "shared through Identity"]
)
def test_weights_return_to_wherever_they_are_held(
    held: str,
    make_graph: Callable[..., Any],
    weights: Callable[..., np.ndarray],
    submit: Callable[..., Any],
    tmp_path: Path,
) -> None:
    node, matrix, bias = helper.make_node, weights(64, 64), weights(64)
    tail = [node("Gemm", ["r", "w2", "b2"], ["y"], "head")]
    end = {"w2": weights(64, 3), "b2": weights(1, 3)}
    head = [node("Flatten", ["x"], ["f"])]
    initializers = {"w": matrix, "b": bias, **end}
    match held:
        case "MatMul and Add":
            initializers["b"] = bias.reshape(1, -1)
            middle = [node("MatMul", ["f", "w"], ["m"]), node("Add", ["b", "m"], ["h"])]
        case "Constant nodes":
            initializers = end
            middle = [
                node("Constant", [], ["w"], value=numpy_helper.from_array(matrix)),
                node("Constant", [], ["b"], value_floats=[float(v) for v in bias]),
                node("Gemm", ["f", "w", "b"], ["h"]),
            ]
        case "transposed":
            middle = [node("Transpose", ["w"], ["wt"], perm=[1, 0]), node("Gemm", ["f", "wt", "b"], ["h"])]
        case "shared":
            middle = [node("Gemm", ["f", "w", "b"], ["h0"], transB=1), node("Gemm", ["h0", "w", "b"], ["h"])]
        case _:
            middle = [
                node("Identity", ["b"], ["b_again"]),
                node("Gemm", ["f", "w", "b"], ["h0"]),
                node("Gemm", ["h0", "w", "b_again"], ["h"]),
            ]
    model = make_graph(
        [*head, *middle, node("Relu", ["h"], ["r"]), *tail], initializers, ir_version=3 if held == "shared" else 8
    )
    if held == "shared":
        # old files list weights among the inputs
        model.graph.input.extend(helper.make_tensor_value_info(k, 1, v.shape) for k, v in initializers.items())
    directory, submission = submit(model)
    loaded = load_model(directory, submission)
    shift_every_tensor(loaded.model)
    assert_round_trip(directory, submission, loaded.model, tmp_path / "out")


def test_of_a_tensor_that_two_layers_share_each_gets_its_own(
    make_graph: Callable[..., Any], weights: Callable[..., np.ndarray], submit: Callable[..., Any], tmp_path: Path
) -> None:
    node = helper.make_node
    nodes = [
        node("Flatten", ["x"], ["f"]),
        node("Gemm", ["f", "w", "b"], ["h"], "one"),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w", "b"], ["g"], "two"),
        node("MatMul", ["g", "w2"], ["y"]),
    ]
    model = make_graph(nodes, {"w": weights(64, 64), "b": weights(64), "w2": weights(64, 3)})
    directory, submission = submit(model)
    loaded = load_model(directory, submission).model
    assert loaded.get_submodule("one").weight is loaded.get_submodule("two").weight
    shift_every_tensor(loaded)
    written = assert_round_trip(directory, submission, loaded, tmp_path / "out")
    roles = ["gemm_1.weight", "gemm_1.bias", "gemm_2.weight", "gemm_2.bias", "matmul_1.weight"]
    assert [t.name for t in written.graph.initializer] == roles


@pytest.mark.parametrize("letter", ["a", "e"])
def test_a_third_party_model_is_written_back(letter: str, shared_models: Path, tmp_path: Path) -> None:
    directory = shared_models / f"third-party-{letter}"
    submission = read_submission(directory)
    loaded = load_model(directory, submission)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(0.9)
    write_repaired(directory, submission, loaded.model, tmp_path / "out", parent=PARENT, name="renamed")
    assert read_submission(tmp_path / "out").name == "renamed"
    again = load_model(tmp_path / "out", read_submission(tmp_path / "out"))
    x = torch.rand(3, *submission.input_shape)
    assert torch.equal(again.model(x), loaded.model(x))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_repaired_weights_keep_their_keys(name: str, submit: Callable[..., Any], tmp_path: Path) -> None:
    network = ARCHITECTURES[name]((1, 8, 8), 3)
    directory, submission = submit(
        save(network.state_dict()), model="model.safetensors", format="safetensors", architecture=name
    )
    loaded = load_model(directory, submission)
    shift_every_tensor(loaded.model)
    write_repaired(directory, submission, loaded.model, tmp_path / "out", parent=PARENT)
    again = load_model(tmp_path / "out", read_submission(tmp_path / "out"))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(again.model(x), loaded.model(x))
    assert list(again.model.state_dict()) == list(network.state_dict())


def test_the_licence_travels_with_the_repaired_model(cnn: Any, submit: Callable[..., Any], tmp_path: Path) -> None:
    directory, submission = submit(cnn)
    (directory / "LICENSE").write_text("MIT")
    write_repaired(directory, submission, load_model(directory, submission).model, tmp_path / "out", parent=PARENT)
    assert (tmp_path / "out" / "LICENSE").read_text() == "MIT"


def test_a_repair_that_adds_a_layer_cannot_be_written(cnn: Any, submit: Callable[..., Any], tmp_path: Path) -> None:
    directory, submission = submit(cnn)
    model = nn.Sequential(load_model(directory, submission).model)
    with pytest.raises(DefenceError, match="repair weights in place"):
        write_repaired(directory, submission, model, tmp_path / "out", parent=PARENT)


def test_a_repair_that_lives_in_a_hook_cannot_be_written(cnn: Any, submit: Callable[..., Any], tmp_path: Path) -> None:
    directory, submission = submit(cnn)
    model = load_model(directory, submission).model
    model.get_submodule("relu").register_forward_hook(lambda _m, _i, out: out * 0)
    with pytest.raises(DefenceError, match="changes weights only"):
        write_repaired(directory, submission, model, tmp_path / "out", parent=PARENT)
    assert not (tmp_path / "out").exists()


def test_a_diverged_repair_is_not_written(cnn: Any, submit: Callable[..., Any], tmp_path: Path) -> None:
    directory, submission = submit(cnn)
    model = load_model(directory, submission).model
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(DefenceError, match="diverged"):
        write_repaired(directory, submission, model, tmp_path / "out", parent=PARENT)
    assert not (tmp_path / "out").exists()


def test_an_existing_directory_is_not_overwritten(cnn: Any, submit: Callable[..., Any]) -> None:
    directory, submission = submit(cnn)
    with pytest.raises(StoreError, match="File exists"):
        write_repaired(directory, submission, load_model(directory, submission).model, directory, parent=PARENT)


def test_only_known_formats_are_written(cnn: Any, submit: Callable[..., Any], tmp_path: Path) -> None:
    directory, submission = submit(cnn)
    model = load_model(directory, submission).model
    other = submission.model_copy(update={"format": "pt"})
    with pytest.raises(NotUnderstood, match="pt"):
        write_repaired(directory, other, model, tmp_path / "out", parent=PARENT)

"""The canonical form: the same bytes for the same network, and nothing in them that the network does not need."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from tests.written import check_equal, describe
from vetgate.architectures import ARCHITECTURES
from vetgate.errors import NotUnderstood
from vetgate.formats.load import load_members
from vetgate.formats.onnx import canonical as module
from vetgate.formats.onnx.reading.submitted import read_submitted
from vetgate.formats.onnx.rewriting.settle import settle
from vetgate.formats.readers import format_of
from vetgate.formats.submission import Submission

node = helper.make_node


def canonical(model: bytes | onnx.ModelProto, **fields: Any) -> tuple[Submission, bytes]:
    submission = describe(**fields)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return format_of(submission).canonical({submission.model: data}, submission)


def renamed(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same network under other names, its initializers shuffled, with texts and types that say nothing new."""
    dice, copied = random.Random(seed), onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    names = {name for n in graph.node for name in (*n.input, *n.output) if name}
    new = {name: f"v{dice.randrange(10**9)}" for name in sorted(names)}
    for n in graph.node:
        n.name, n.doc_string = f"n{dice.randrange(10**9)}", "a text"
        taken, made = [new.get(name, "") for name in n.input], [new.get(name, "") for name in n.output]
        del n.input[:], n.output[:]
        n.input.extend(taken)
        n.output.extend(made)
        order = dice.sample(list(n.attribute), len(n.attribute))
        del n.attribute[:]
        n.attribute.extend(order)
    weights = dice.sample(list(graph.initializer), len(graph.initializer))
    del graph.initializer[:]
    for weight in weights:
        weight.name = new[weight.name]
        graph.initializer.append(weight)
    graph.input[0].name, graph.output[0].name = new[graph.input[0].name], new[graph.output[0].name]
    graph.name, copied.producer_name, graph.doc_string = "other", "someone", "more text"
    copied.metadata_props.add(key="a", value="b")
    return copied


def exported(name: str, opset: int, free_batch: bool) -> bytes:
    torch.manual_seed(0)
    network = ARCHITECTURES[name]((3, 16, 16), 5)
    network(torch.rand(16, 3, 16, 16))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.rand(1, 3, 16, 16),),
            file,
            opset_version=opset,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}} if free_batch else None,
        )
    return file.getvalue()


@pytest.mark.parametrize("seed", range(3))
def test_names_order_and_texts_of_a_file_do_not_matter(seed: int, cnn: onnx.ModelProto) -> None:
    assert canonical(renamed(cnn, seed))[1] == canonical(cnn)[1]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_what_was_exported_in_other_opsets_or_for_one_image_is_the_same_network(name: str) -> None:
    fields = {"input_shape": (3, 16, 16), "classes": 5}
    forms = {canonical(exported(name, *how), **fields)[1] for how in ((13, True), (17, False), (20, True))}
    assert len(forms) == 1


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_canonical_form_of_the_canonical_form_is_itself(name: str) -> None:
    fields = {"input_shape": (3, 16, 16), "classes": 5}
    submission, data = canonical(exported(name, 17, False), **fields)
    assert canonical(data, **fields) == (submission, data)


def test_graphs_that_learned_other_numbers_are_of_one_architecture_and_others_are_not() -> None:
    fields = {"input_shape": (3, 16, 16), "classes": 5}

    def kind(name: str, opset: int = 17, *, scale: float = 1.0, padded: bool = False) -> str | None:
        model = onnx.load_from_string(exported(name, opset, True))
        for weight in model.graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT:
                scaled = numpy_helper.to_array(weight) * np.float32(scale)
                weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))
        if padded:
            # of the same sizes, wired alike, and still no convolution of that kind
            conv = next(n for n in model.graph.node if n.op_type == "Conv")
            next(a for a in conv.attribute if a.name == "pads").ints[:] = [0, 0, 2, 2]
        return canonical(model, **fields)[0].compared_as

    alike = {kind("small-cnn"), kind("small-cnn", scale=1.25), kind("small-cnn", opset=13)}
    assert len(alike) == 1 and str(*alike).startswith("graph-")
    assert len({kind("small-cnn"), kind("vgg-small"), kind("preact-resnet"), kind("small-cnn", padded=True)}) == 4


def test_attention_to_turned_images_is_written_as_it_is_read_again(make_graph: Callable[..., Any]) -> None:
    # the transposition of the keys follows one of the file
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 1, 3]),
        node("Attention", ["t", "t", "t"], ["a"]),
        node("Flatten", ["a"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    model = make_graph(nodes, {"w": np.eye(24, 3, dtype=np.float32)}, shape=("N", 2, 3, 4), opset=23, ir_version=10)
    written, first = canonical(model, input_shape=(2, 3, 4))
    assert canonical(first, input_shape=(2, 3, 4)) == (written, first)


def test_attention_to_what_a_number_was_taken_into_runs_in_onnxruntime(make_graph: Callable[..., Any]) -> None:
    nodes = [
        node("Div", ["x", "three"], ["d"]),
        node("Attention", ["d", "d", "d"], ["a"]),
        node("Flatten", ["a"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    held = {"three": np.array(3, np.float32), "w": np.eye(24, 3, dtype=np.float32)}
    model = make_graph(nodes, held, shape=("N", 2, 3, 4), opset=23, ir_version=10)
    submission, data = canonical(model, input_shape=(2, 3, 4))
    check_equal(data, submission)


@pytest.mark.parametrize(("place", "sides"), [(2, [1.0, 0.5]), (3, [5, 2])])
def test_images_whose_axes_were_exchanged_are_resized_in_onnxruntime(
    place: int, sides: list[float], make_graph: Callable[..., Any]
) -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
        node("Resize", ["t", *[""] * (place - 1), "sides"], ["r"], mode="nearest", axes=[2, 3]),
        node("Mul", ["factor", "r"], ["m"]),
        node("Flatten", ["m"], ["f"]),
        node("Gemm", ["f", "w"], ["y"]),
    ]
    kind = np.float32 if place == 2 else np.int64
    width = 60 if place == 3 else 6 * 5
    held = {
        "sides": np.array(sides, kind),
        "factor": np.linspace(0.5, 1, 6, dtype=np.float32).reshape(6, 1, 1),
        "w": np.eye(width, 3, dtype=np.float32),
    }
    model = make_graph(nodes, held, shape=("N", 3, 6, 5), opset=18)
    submission, data = canonical(model, input_shape=(3, 6, 5))
    check_equal(data, submission)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_it_is_written_as_protobuf_writes_it(name: str) -> None:
    _, data = canonical(exported(name, 17, True), input_shape=(3, 16, 16), classes=5)
    assert onnx.load_from_string(data).SerializeToString(deterministic=True) == data


def test_whether_a_graph_is_written_so_is_told_to_the_last_byte(cnn: onnx.ModelProto) -> None:
    submission, data = canonical(cnn)
    graph, _ = settle(read_submitted({"model.onnx": data}, submission), submission.input_shape)
    assert module.is_written_as(graph, data) and module.is_written_as(graph, memoryview(data))
    for at in (0, len(data) // 2, len(data) - 1):
        assert not module.is_written_as(graph, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert not module.is_written_as(graph, data[:-1]) and not module.is_written_as(graph, data + b"\x00")


def test_what_is_read_back_is_the_same_module_bit_for_bit(cnn: onnx.ModelProto) -> None:
    submission, data = canonical(cnn)
    before = load_members({"model.onnx": cnn.SerializeToString()}, describe()).model
    after = load_members({"model.onnx": data}, submission).model
    one, two = before.state_dict(), after.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(before(x), after(x))


def test_nothing_is_written_that_the_network_does_not_need(cnn: onnx.ModelProto) -> None:
    model = onnx.load_from_string(canonical(renamed(cnn, 7))[1])
    assert (model.ir_version, [o.version for o in model.opset_import], model.producer_name) == (10, [21], "vetgate")
    assert not model.metadata_props and not model.graph.value_info and not model.graph.doc_string
    assert [n.name for n in model.graph.node] == [
        *("sub_1", "conv_1", "relu_1", "maxpool_1", "flatten_1", "gemm_1", "relu_2", "gemm_2"),
    ]
    names = [t.name for t in model.graph.initializer]
    assert names == [
        *("sub_1.input1", "conv_1.weight", "conv_1.bias"),
        *("gemm_1.weight", "gemm_1.bias", "gemm_2.weight", "gemm_2.bias"),
    ]
    assert [i.name for i in model.graph.input] == ["image"] and [o.name for o in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    conv = {a.name: helper.get_attribute_value(a) for a in model.graph.node[1].attribute}
    assert conv == {"dilations": [1, 1], "group": 1, "kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1]}
    onnx.checker.check_model(model, full_check=True)


def test_the_order_of_a_file_does_not_matter_where_it_is_free(
    make_graph: Callable[..., Any], weights: Callable[..., np.ndarray]
) -> None:
    left = [node("Relu", ["x"], ["a"]), node("Sigmoid", ["a"], ["b"])]
    right = [node("Tanh", ["x"], ["c"])]
    tail = [node("Add", ["b", "c"], ["s"]), node("Flatten", ["s"], ["f"]), node("MatMul", ["f", "w"], ["y"])]
    orders = [left + right + tail, right + left + tail, [left[0], *right, left[1], *tail]]
    assert len({canonical(make_graph(order, {"w": weights(64, 3)}))[1] for order in orders}) == 1


def test_a_layer_keeps_being_named(cnn: onnx.ModelProto) -> None:
    for given in ("pool", "p"):
        submission, data = canonical(cnn, layer=given)
        assert submission.layer == "maxpool_1"
        assert load_members({"model.onnx": data}, submission).layer == "maxpool_1"
        assert canonical(data, layer="maxpool_1") == (submission, data)
    with pytest.raises(NotUnderstood, match="expected a layer of the graph, got 'nowhere'"):
        canonical(cnn, layer="nowhere")


def test_a_layer_that_does_nothing_is_the_one_before_it(
    make_graph: Callable[..., Any], weights: Callable[..., np.ndarray]
) -> None:
    nodes = [node("Flatten", ["x"], ["f"], "flat"), node("Dropout", ["f"], ["d"], "drop")]
    model = make_graph([*nodes, node("MatMul", ["d", "w"], ["y"])], {"w": weights(64, 3)})
    assert canonical(model, layer="drop")[0].layer == "flatten_1"


def test_tensors_that_are_shared_until_they_fill_the_memory_are_refused(
    make_graph: Callable[..., Any], weights: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node("Flatten", ["x"], ["h0"])]
    nodes += [node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"]) for i in range(10)]
    model = make_graph([*nodes, node("MatMul", ["h10", "v"], ["y"])], {"w": weights(64, 64), "v": weights(64, 3)})
    assert len(canonical(model)[1]) > 10 * 64 * 64 * 4
    monkeypatch.setattr(module, "MAX_BYTES", 5 * 64 * 64 * 4)
    with pytest.raises(NotUnderstood, match="bytes of tensors, one for each use"):
        canonical(model)


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu()
        return self.head(x.view(x.size(0), -1))


def test_no_number_is_computed_from_a_shape_and_the_batch_is_free() -> None:
    file = io.BytesIO()
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    names = {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Viewed().eval(), (torch.rand(1, 1, 8, 8),), file, dynamo=False, dynamic_axes=axes, **names)
    given = onnx.load_from_string(file.getvalue())
    assert "Shape" in {n.op_type for n in given.graph.node}
    made = onnx.load_from_string(canonical(given)[1])
    assert [n.op_type for n in made.graph.node] == ["Conv", "Relu", "Reshape", "Gemm"]
    shape = next(t for t in made.graph.initializer if t.name == "reshape_1.shape")
    assert numpy_helper.to_array(shape).tolist() == [-1, 144]

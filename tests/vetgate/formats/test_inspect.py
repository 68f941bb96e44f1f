"""Files that are not understood to their last byte: each refused with exit code 3 and words that help."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save

from vetgate.architectures import ARCHITECTURES
from vetgate.errors import NotUnderstood
from vetgate.formats.inspect import inspect_bytes
from vetgate.formats.load import load_model
from vetgate.formats.readers import formats

Submit = Callable[..., Any]


def refused(directory: Path, submission: Any, message: str) -> str:
    """Both inspection and loading refuse; returns the words."""
    with pytest.raises(NotUnderstood, match=message) as error:
        inspect_bytes(directory, submission)
    assert error.value.exit_code == 3
    with pytest.raises(NotUnderstood):
        load_model(directory, submission)
    return str(error.value)


def test_a_sound_graph_passes(cnn: Any, submit: Submit) -> None:
    inspect_bytes(*submit(cnn))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_graph_is_refused(share: float, cnn: Any, submit: Submit) -> None:
    data = cnn.SerializeToString()
    refused(*submit(data[: int(share * len(data))]), "expected")


def external(model: Any) -> None:
    tensor = model.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def external_by_flag(model: Any) -> None:
    model.graph.initializer[1].data_location = TensorProto.EXTERNAL


def unknown_operator(model: Any) -> None:
    model.graph.node[2].op_type = "Softshrinkage"


def other_domain(model: Any) -> None:
    model.graph.node[2].domain = "com.evil"
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def control_flow(model: Any) -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["c"], ["o"])], "b", [], [helper.make_empty_tensor_value_info("o")]
    )
    node = helper.make_node("If", ["mean"], ["r"], then_branch=body, else_branch=body)
    model.graph.node[2].CopyFrom(node)


def control_flow_by_name(model: Any) -> None:
    model.graph.node[2].op_type = "Loop"


def function(model: Any) -> None:
    model.functions.append(helper.make_function("f", "Relu", ["a"], ["b"], [helper.make_node("Abs", ["a"], ["b"])], []))


def training(model: Any) -> None:
    model.training_info.add()


def sparse(model: Any) -> None:
    model.graph.sparse_initializer.add()


def huge_header(model: Any) -> None:
    model.graph.initializer[1].dims[:] = [1 << 15, 1 << 15]


def overflowing_header(model: Any) -> None:
    model.graph.initializer[1].dims[:] = [1 << 32, 1 << 32]


def negative_header(model: Any) -> None:
    model.graph.initializer[1].dims[:] = [-4, -9]


def strings(model: Any) -> None:
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], ["x"]))


def twofold_data(model: Any) -> None:
    model.graph.initializer[1].float_data.extend([0.0] * 36)


def nan_weights(model: Any) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full((4, 1, 3, 3), np.nan, np.float32), "cw"))


def infinite_weights(model: Any) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full((4, 1, 3, 3), np.inf, np.float32), "cw"))


def unused_tensor(model: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(9, np.float32), "idle"))


def unused_node(model: Any) -> None:
    model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["idle"]))


def tensor_twice(model: Any) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def value_twice(model: Any) -> None:
    model.graph.node[3].output[0] = "c"


def cycle(model: Any) -> None:
    model.graph.node[0].input[1] = "hr"


def two_inputs(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))


def two_outputs(model: Any) -> None:
    model.graph.output.append(helper.make_tensor_value_info("hr", TensorProto.FLOAT, None))


def old_opset(model: Any) -> None:
    model.opset_import[0].version = 7


def future_opset(model: Any) -> None:
    model.opset_import[0].version = 99


def unknown_attribute(model: Any) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("secret", 1))


def mistyped_attribute(model: Any) -> None:
    del model.graph.node[7].attribute[:]
    model.graph.node[7].attribute.append(helper.make_attribute("transB", 1.0))


def byte_images(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def other_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3


def other_classes(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4


BAD: dict[Callable[[Any], None], str] = {
    external: "beside the model",
    external_by_flag: "beside it",
    unknown_operator: "Softshrinkage",
    other_domain: "com.evil",
    control_flow: "control flow",
    control_flow_by_name: "control flow",
    function: "inline",
    training: "training graph",
    sparse: "sparse",
    huge_header: "expected 4294967296 bytes",
    overflowing_header: "expected 73786976294838206464 bytes",
    negative_header: "sizes >= 0",
    strings: "string",
    twofold_data: "hold its numbers once",
    nan_weights: "NaN",
    infinite_weights: "NaN or infinity",
    unused_tensor: "idle",
    unused_node: "does not; remove it",
    tensor_twice: "twice",
    value_twice: "twice",
    cycle: "a cycle",
    two_inputs: "one input and one output",
    two_outputs: "expected one output",
    old_opset: "opset 9 to 26",
    future_opset: "opset 9 to 26",
    unknown_attribute: "secret",
    mistyped_attribute: "transB",
    byte_images: "floating-point numbers as input",
    other_input: r"\(N, 1, 8, 8\)",
    other_classes: r"\(N, 3\)",
}


@pytest.mark.parametrize("spoil", list(BAD), ids=lambda f: f.__name__)
def test_a_spoilt_graph_is_refused(spoil: Callable[[Any], None], cnn: Any, submit: Submit) -> None:
    spoil(cnn)
    refused(*submit(cnn), BAD[spoil])


def field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + struct.pack("B", len(payload)) + payload if number < 16 else b""


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"\x00", "expected"),
        (b"\xff" * 11, "at most 64 bits"),
        (b"\x98\x06\x01", "field 99"),
        (b"\x0b\x0c", "wire type 3"),
        (field(7, b""), "expected one graph"),
        (b"\x3a\xff\xff\xff\xff\x0f", "truncated"),
        (field(2, b"x"), "expected one producer_name"),
        (field(6, b"\xff"), "UTF-8"),
    ],
)
def test_bytes_behind_the_model_are_refused(tail: bytes, message: str, cnn: Any, submit: Submit) -> None:
    cnn.producer_name = "tests"
    refused(*submit(cnn.SerializeToString() + tail), message)


def test_a_header_of_four_gibibytes_allocates_nothing(cnn: Any, submit: Submit) -> None:
    huge_header(cnn)
    directory, submission = submit(cnn)
    start = time.process_time()
    refused(directory, submission, "4294967296 bytes")
    assert time.process_time() - start < 1


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["MARKER"],)


@pytest.mark.parametrize("protocol", [0, 2, 4, "torch"])
@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "README"])
def test_a_pickle_under_any_name_is_refused_and_never_run(
    protocol: int | str, name: str, cnn: Any, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKER", str(tmp_path / "ran"))
    file = io.BytesIO()
    if protocol == "torch":
        torch.save({"w": Payload()}, file)
    else:
        pickle.dump(Payload(), file, protocol=int(protocol))
    fields = {"format": "safetensors", "architecture": "small-cnn", "model": name} if "safe" in name else {}
    directory, submission = submit(cnn if name == "README" else file.getvalue(), **fields)
    (directory / name).write_bytes(file.getvalue())
    if name == "README" and protocol == 0:
        inspect_bytes(directory, submission)  # protocol 0 is text, and a README is never loaded
    else:
        with pytest.raises(NotUnderstood, match=r"ONNX|save_file"):
            inspect_bytes(directory, submission)
    if name != "README":
        with pytest.raises(NotUnderstood):
            load_model(directory, submission)
    assert not (tmp_path / "ran").exists()


def test_other_formats_are_refused_with_what_to_hand_in(cnn: Any, submit: Submit) -> None:
    assert "ONNX graph" in refused(*submit(cnn, format="pt"), f"expected format {' or '.join(formats())}, got 'pt'")


@pytest.mark.parametrize(
    ("name", "content"), [("run.py", b"x"), ("data.pkl", b"x"), ("model.data", b"x"), ("NOTICE", b"\x00")]
)
def test_extra_files_are_refused(name: str, content: bytes, cnn: Any, submit: Submit) -> None:
    directory, submission = submit(cnn)
    (directory / name).write_bytes(content)
    with pytest.raises(NotUnderstood, match=name):
        inspect_bytes(directory, submission)


def test_a_readme_and_a_licence_may_come_along(cnn: Any, submit: Submit) -> None:
    directory, submission = submit(cnn)
    (directory / "README.md").write_text("# Modell für Ziffern\n")
    (directory / "LICENSE").write_text("MIT")
    inspect_bytes(directory, submission)


def test_a_link_as_model_is_refused(cnn: Any, submit: Submit, tmp_path: Path) -> None:
    directory, submission = submit(cnn)
    (directory / "model.onnx").rename(tmp_path / "real.onnx")
    (directory / "model.onnx").symlink_to(tmp_path / "real.onnx")
    refused(directory, submission, "symbolic link")
    (directory / "model.onnx").unlink()
    os.link(tmp_path / "real.onnx", directory / "model.onnx")
    refused(directory, submission, "hard link")
    (directory / "model.onnx").unlink()
    refused(directory, submission, "model.onnx")


def test_classes_that_no_shape_declares_are_found_by_a_run(cnn: Any, submit: Submit) -> None:
    cnn.graph.output[0].type.tensor_type.ClearField("shape")
    directory, submission = submit(cnn, classes=7)
    inspect_bytes(directory, submission)
    with pytest.raises(NotUnderstood, match=r"expected logits of shape \(2, 7\).*got \(2, 3\)"):
        load_model(directory, submission)


def test_an_image_size_that_no_shape_declares_is_found_by_a_run(cnn: Any, submit: Submit) -> None:
    for dim in cnn.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = f"d{id(dim)}"
    directory, submission = submit(cnn, input_shape=[1, 9, 12])
    inspect_bytes(directory, submission)
    with pytest.raises(NotUnderstood, match="hidden"):
        load_model(directory, submission)


def test_a_graph_that_grows_without_end_is_stopped(make_graph: Callable[..., Any], submit: Submit) -> None:
    names = ["x", *(f"v{i}" for i in range(40))]
    nodes = [helper.make_node("Concat", [a, a], [b], axis=3) for a, b in pairwise(names)]
    nodes += [helper.make_node("GlobalAveragePool", [names[-1]], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
    nodes += [helper.make_node("MatMul", ["f", "w"], ["y"])]
    with pytest.raises(NotUnderstood, match="expected at most"):
        load_model(*submit(make_graph(nodes, {"w": np.zeros((1, 3), np.float32)})))


# ---- weights for a named architecture


def weights_of(name: str = "small-cnn", classes: int = 3) -> dict[str, torch.Tensor]:
    return dict(ARCHITECTURES[name]((1, 8, 8), classes).state_dict())


@pytest.fixture
def submit_weights(submit: Submit) -> Submit:
    def make(data: bytes, **fields: Any) -> Any:
        given = {"model": "model.safetensors", "format": "safetensors", "architecture": "small-cnn"} | fields
        return submit(data, **given)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_weights_agree_with_the_eager_network(name: str, dtype: torch.dtype, submit_weights: Submit) -> None:
    network = ARCHITECTURES[name]((1, 8, 8), 3)
    network(torch.rand(8, 1, 8, 8))
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    directory, submission = submit_weights(save(state, {"format": "pt"}), architecture=name)
    inspect_bytes(directory, submission)
    loaded = load_model(directory, submission)
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(loaded.model(x), network.eval()(x), rtol=1e-4, atol=1e-4)
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.softmax_stripped


SPOILT_WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a missing tensor": (lambda w: w.pop("head.bias"), "missing"),
    "an extra tensor": (lambda w: w.update(extra=torch.zeros(1)), "extra"),
    "another shape": (lambda w: w.update({"head.bias": torch.zeros(4)}), "head.bias of shape"),
    "whole numbers": (lambda w: w.update({"head.bias": torch.zeros(3, dtype=torch.int64)}), "head.bias"),
    "doubles": (lambda w: w.update({"head.bias": torch.zeros(3, dtype=torch.float64)}), "F32"),
    "NaN": (lambda w: w["head.weight"].fill_(float("nan")), "NaN"),
    "infinity": (lambda w: w["head.weight"].fill_(float("inf")), "infinity"),
}


@pytest.mark.parametrize("what", sorted(SPOILT_WEIGHTS))
def test_weights_that_do_not_fit_the_architecture_are_refused(what: str, submit_weights: Submit) -> None:
    spoil, message = SPOILT_WEIGHTS[what]
    weights = weights_of()
    spoil(weights)
    with pytest.raises(NotUnderstood, match=message):
        load_model(*submit_weights(save(weights)))


@pytest.mark.parametrize("fields", [{"classes": 4}, {"input_shape": [3, 8, 8]}, {"architecture": "vgg-small"}])
def test_weights_for_another_description_are_refused(fields: dict[str, Any], submit_weights: Submit) -> None:
    with pytest.raises(NotUnderstood, match="expected"):
        load_model(*submit_weights(save(weights_of()), **fields))


def packed(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(start: int, stop: int, shape: list[Any], dtype: str = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop], **more}


HEADERS = {
    "a header of 4 GiB": packed({"a": entry(0, 4, [1])}, bytes(4), size=4 << 30),
    "a tensor of 4 GiB": packed({"a": entry(0, 4 << 30, [1 << 30])}, bytes(4)),
    "a negative size": packed({"a": entry(0, 4, [-1])}, bytes(4)),
    "a truth value as size": packed({"a": entry(0, 4, [True])}, bytes(4)),
    "a gap": packed({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "an overlap": packed({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(4)),
    "bytes behind": packed({"a": entry(0, 4, [1])}, bytes(5)),
    "too few bytes": packed({"a": entry(0, 4, [1])}, bytes(3)),
    "a name twice": packed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 1 + b'"a":{}}', bytes(4)),
    "a further field": packed({"a": entry(0, 4, [1], code="x")}, bytes(4)),
    "no tensor": packed({}),
    "no object": packed(b"[]"),
    "NaN": packed(b'{"a":NaN}'),
    "deep nesting": packed(b'{"a":' + b"[" * 100_000),
    "a huge number": packed(b'{"a":' + b"9" * 10_000 + b"}"),
    "metadata of another kind": packed({"__metadata__": {"a": 1}, "a": entry(0, 4, [1])}, bytes(4)),
    "nothing": b"",
    "three bytes": b"abc",
}


@pytest.mark.parametrize("what", sorted(HEADERS))
def test_a_broken_safetensors_header_is_refused(what: str, submit_weights: Submit) -> None:
    refused(*submit_weights(HEADERS[what]), "expected")


def test_an_onnx_graph_as_safetensors_is_refused(cnn: onnx.ModelProto, submit_weights: Submit) -> None:
    refused(*submit_weights(cnn.SerializeToString()), "safetensors header")

"""Weights are copied once, out of a mapped file into the parameters of the module, and shared with nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vetgate.formats.inspect import inspect_bytes
from vetgate.formats.load import load_model
from vetgate.formats.onnx.graph import parse_model, read_graph
from vetgate.formats.onnx.module import build_module
from vetgate.formats.onnx.pieces import PIECE, copied, pieces
from vetgate.formats.onnx.rewriting.settle import settle
from vetgate.formats.onnx.windows import LARGE, LargeConv2d

ROOT = next(p for p in Path(__file__).parents if (p / "pyproject.toml").is_file())
MEASURE = """
import json, sys
from pathlib import Path
from vetgate.formats.load import load_model
from vetgate.formats.submission import read_submission

def resident(kind):
    return int(Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0]) << 10

small, large = (Path(each) for each in sys.argv[1:])
load_model(small, read_submission(small))
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
kept = load_model(large, read_submission(large))
print(json.dumps(resident("VmHWM") - before))
"""


def wide(make_graph: Callable[..., onnx.ModelProto], width: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    sizes = (64, width, width, 3)
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    weights = {f"w{i}": (rng.standard_normal(shape, np.float32) / 64) for i, shape in enumerate(shapes)}
    nodes = [helper.make_node("Flatten", ["x"], ["h0"])]
    nodes += [helper.make_node("Gemm", [f"h{i}", f"w{i}"], [f"h{i + 1}" if i < 2 else "y"], transB=1) for i in range(3)]
    return make_graph(nodes, weights)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is told by Linux")
def test_a_file_is_loaded_in_less_than_one_and_a_half_times_its_size(
    make_graph: Callable[..., onnx.ModelProto], submit: Callable[..., Any], tmp_path: Path
) -> None:
    directories = []
    for name, width in (("small", 8), ("large", 3072)):
        directory, _ = submit(wide(make_graph, width))
        directories.append(directory.rename(tmp_path / name))
    command = [sys.executable, "-c", MEASURE, *map(str, directories)]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout
    size = (directories[1] / "model.onnx").stat().st_size
    assert size < json.loads(told) < 1.5 * size


def test_what_the_parser_is_given_holds_no_numbers(cnn: onnx.ModelProto) -> None:
    data = cnn.SerializeToString()
    parsed = parse_model(data)
    assert all(len(tensor.raw_data) == 16 for tensor in parsed.proto.graph.initializer)
    graph = read_graph(parsed)
    for tensor in cnn.graph.initializer:
        np.testing.assert_array_equal(graph.constants[tensor.name].value, numpy_helper.to_array(tensor))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
@pytest.mark.parametrize("raw", [True, False])
def test_a_tensor_in_a_node_is_read_as_the_format_has_it(kind: int, raw: bool, make_graph: Callable[..., Any]) -> None:
    values = np.arange(3, dtype=helper.tensor_dtype_to_np_dtype(kind)).reshape(1, 3)
    held = values.tobytes() if raw else values.reshape(-1)
    constant = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("t", kind, values.shape, held, raw=raw))
    nodes = [constant, helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "c"], ["y"])]
    graph = read_graph(parse_model(make_graph(nodes, {"w": np.ones((64, 3), np.float32)}).SerializeToString()))
    assert graph.constants["c"].value.dtype == np.float32
    np.testing.assert_array_equal(graph.constants["c"].value, [[0, 1, 2]])


def test_no_two_parameters_have_memory_in_common(make_graph: Callable[..., Any]) -> None:
    # one tensor of the file, as it is, under another shape, and turned
    square = np.arange(64, dtype=np.float32).reshape(8, 8)
    nodes = [
        helper.make_node("Reshape", ["w", "flat"], ["kernel"]),
        helper.make_node("Conv", ["x", "kernel"], ["a"]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w"], ["c"], transB=1),
        helper.make_node("Gemm", ["c", "w"], ["d"], transB=0),
        helper.make_node("PRelu", ["d", "slope"], ["e"]),
        helper.make_node("Gemm", ["e", "last", "bias"], ["y"]),
    ]
    weights = {
        "w": square / 64,
        "flat": np.array([8, 1, 8, 1], np.int64),
        "slope": np.ones(8, np.float32),
        "last": np.ones((8, 3), np.float32),
        "bias": np.zeros((1, 3), np.float32),
    }
    graph = make_graph(nodes, weights, shape=("N", 1, 8, 1))
    settled, _ = settle(read_graph(parse_model(graph.SerializeToString())), (1, 8, 1))
    module = build_module(settled)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            parameter.add_(1)
        changed = [other for other, value in module.state_dict().items() if not torch.equal(value, before[other])]
        assert changed == [name]
        with torch.no_grad():
            parameter.copy_(before[name])


def test_files_of_a_format_that_maps_them_are_views(cnn: Any, submit: Callable[..., Any]) -> None:
    directory, submission = submit(cnn)
    (data,) = inspect_bytes(directory, submission).values()
    assert isinstance(data, memoryview) and data.readonly and data == cnn.SerializeToString()
    loaded = load_model(directory, submission)
    (directory / submission.model).write_bytes(b"")
    assert torch.isfinite(loaded.model(torch.rand(2, 1, 8, 8))).all()


def test_an_array_is_copied_and_walked_in_pieces() -> None:
    array = np.random.default_rng(0).standard_normal((3, PIECE // 8), np.float32)
    data = b"\x00" + array.tobytes() + b"\x01"
    made = copied(data, 1, array.dtype, array.shape)
    np.testing.assert_array_equal(made, array)
    assert made.flags.owndata and made.flags.writeable
    parts = list(pieces(made))
    assert [part.nbytes for part in parts] == [PIECE, PIECE // 2] and np.shares_memory(parts[0], made)
    for shape in ((), (0, 3)):
        assert copied(data, 1, array.dtype, shape).shape == shape


def test_a_large_convolution_of_a_whole_image_is_the_linear_map_that_it_is() -> None:
    torch.manual_seed(0)
    large, plain = LargeConv2d(4, 5, (3, 2)), nn.Conv2d(4, 5, (3, 2))
    large.load_state_dict(plain.state_dict())
    for shape in ((2, 4, 3, 2), (2, 4, 5, 6)):
        x = torch.rand(shape)
        torch.testing.assert_close(large(x), plain(x))
    with pytest.raises(RuntimeError):
        large(torch.rand(2, 3, 3, 2))


def test_only_large_convolutions_are_of_that_kind(make_graph: Callable[..., Any]) -> None:
    for width, kind in ((8, nn.Conv2d), (LARGE // 64, LargeConv2d)):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Flatten", ["a"], ["b"]),
            helper.make_node("Gemm", ["b", "v"], ["y"]),
        ]
        weights = {"w": np.ones((width, 1, 8, 8), np.float32) / 64, "v": np.ones((width, 3), np.float32) / width}
        graph, _ = settle(read_graph(parse_model(make_graph(nodes, weights).SerializeToString())), (1, 8, 8))
        assert type(next(m for m in build_module(graph).modules() if isinstance(m, nn.Conv2d))) is kind

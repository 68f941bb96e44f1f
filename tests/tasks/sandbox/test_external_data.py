"""An ONNX file with its weights beside it is clean when every byte of that file is of a tensor, otherwise it is not."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tasks.sandbox.scanning import MAX_CLAIMS, ScanWorker, scan_all
from tests.vetgate.scan.assembled import zipped
from tests.vetgate.scan.benign import harmless
from vetgate.scan.rules import RULES

NUMBERS = np.arange(1, 25, dtype=np.float32) / 7
CLEAN = {"model.onnx": set[str](), "model.onnx.data": set[str]()}
ELSEWHERE = {"ExternalData"}


@pytest.fixture(scope="module")
def worker() -> Iterator[ScanWorker]:
    with ScanWorker() as started:
        yield started


def tensor(name: str, count: int, **keys: object) -> TensorProto:
    """A tensor of so many float32 numbers that lies elsewhere."""
    made = TensorProto(name=name, data_type=1, dims=[count], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "model.onnx.data"} | keys).items():
        made.external_data.add(key=key, value=str(value))
    return made


def model(*tensors: TensorProto) -> bytes:
    value = helper.make_tensor_value_info("x", 1, [1])
    nodes = [helper.make_node("Add", ["x", each.name], [f"y{each.name}"]) for each in tensors]
    graph = helper.make_graph(nodes, "g", [value], [value], tensors)
    made: bytes = helper.make_model(graph).SerializeToString()
    return made


def scanned(worker: ScanWorker, directory: Path) -> dict[str, set[str]]:
    """The names of the rules that each file of a directory breaks."""
    return {Path(file.path).name: {RULES[f.rule].name for f in file.findings} for file in scan_all(directory, worker)}


def laid(directory: Path, data: bytes, *tensors: TensorProto) -> Path:
    (directory / "model.onnx").write_bytes(model(*tensors))
    (directory / "model.onnx.data").write_bytes(data)
    return directory


TWO = (tensor("a", 16, offset=0, length=64), tensor("b", 8, offset=64, length=32))


def test_what_the_common_writer_writes_is_clean_with_its_directory_and_open_without(worker, tmp_path):
    large = {name: np.arange(each, dtype=np.float32) + 0.1 for name, each in (("a", 300), ("b", 5000))}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in large.items()]
    loaded = onnx.load_from_string(model(*tensors))
    onnx.save(loaded, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    assert scanned(worker, tmp_path) == CLEAN
    assert scanned(worker, tmp_path / "model.onnx") == {"model.onnx": ELSEWHERE}
    assert scanned(worker, tmp_path / "model.onnx.data") == {"model.onnx.data": {"Unknown"}}


def test_zeros_between_tensors_and_tensors_that_share_their_numbers_are_in_order(worker, tmp_path):
    data = NUMBERS[:16].tobytes() + bytes(4096 - 64) + NUMBERS[16:].tobytes()
    same = tensor("c", 16, offset=0, length=64)
    assert scanned(worker, laid(tmp_path, data, TWO[0], same, tensor("b", 8, offset=4096, length=32))) == CLEAN


def test_two_models_may_use_one_file(worker, tmp_path):
    laid(tmp_path, NUMBERS.tobytes(), *TWO)
    (tmp_path / "half.onnx").write_bytes(model(TWO[0]))
    assert scanned(worker, tmp_path) == CLEAN | {"half.onnx": ELSEWHERE}
    (tmp_path / "half.onnx").write_bytes(model(*TWO))
    assert scanned(worker, tmp_path) == CLEAN | {"half.onnx": set()}


def test_a_file_is_not_read_again_for_any_number_of_models(worker, tmp_path):
    (tmp_path / "model.onnx.data").write_bytes(NUMBERS.tobytes())
    for number in range(MAX_CLAIMS + 3):
        (tmp_path / f"{number:02}.onnx").write_bytes(model(*TWO))
    found = scanned(worker, tmp_path)
    assert [name for name, rules in found.items() if rules == ELSEWHERE] == ["16.onnx", "17.onnx", "18.onnx"]
    assert sum(not rules for rules in found.values()) == MAX_CLAIMS + 1


@pytest.mark.parametrize("first", [0x08, 0x12, 0x3A, 0x72])
def test_numbers_that_begin_as_an_onnx_file_does_are_numbers(worker, tmp_path, first):
    data = bytes([first]) + NUMBERS.tobytes()[1:]
    assert scanned(worker, laid(tmp_path, data, *TWO)) == CLEAN


@pytest.mark.parametrize(
    "data, rule",
    [
        (NUMBERS.tobytes() + b"\x01", "HiddenBytes"),
        (NUMBERS.tobytes() + bytes(4), "HiddenBytes"),
        (NUMBERS.tobytes()[:-1], "Corrupt"),
    ],
    ids=["a byte more", "zeros more", "a byte less"],
)
def test_a_file_of_another_length_is_not_clean(worker, tmp_path, data, rule):
    assert scanned(worker, laid(tmp_path, data, *TWO)) == {"model.onnx": ELSEWHERE, "model.onnx.data": {rule}}


@pytest.mark.parametrize(
    "start, data, rule",
    [
        (60, NUMBERS.tobytes()[:-4], "Corrupt"),
        (68, NUMBERS.tobytes()[:64] + b"\0\0\1\0" + NUMBERS.tobytes()[64:], "HiddenBytes"),
        (64 + (1 << 16), NUMBERS.tobytes()[:64] + bytes(1 << 16) + NUMBERS.tobytes()[64:], "HiddenBytes"),
    ],
    ids=["overlap", "between them", "far between them"],
)
def test_bytes_of_two_tensors_or_of_none_are_not_clean(worker, tmp_path, start, data, rule):
    tensors = TWO[0], tensor("b", 8, offset=start, length=32)
    assert scanned(worker, laid(tmp_path, data, *tensors)) == {"model.onnx": ELSEWHERE, "model.onnx.data": {rule}}


def doubled() -> TensorProto:
    made = tensor("b", 8, offset=64, length=32)
    made.external_data.add(key="offset", value="0")
    return made


def inside_too() -> TensorProto:
    made = tensor("b", 8, offset=64, length=32)
    made.raw_data = bytes(32)
    return made


def not_said_to_be_elsewhere() -> TensorProto:
    made = tensor("b", 8, offset=64, length=32)
    made.data_location = TensorProto.DEFAULT
    return made


@pytest.mark.parametrize(
    "second",
    [
        doubled(),
        inside_too(),
        not_said_to_be_elsewhere(),
        tensor("b", 8, offset=64, length=28),
        tensor("b", 8, offset="+64", length=32),
        tensor("b", 8, offset=64, length=32, basepath="elsewhere"),
        tensor("b", 8, offset=64, length=32, location="there/model.onnx.data"),
    ],
    ids=["offset twice", "inside too", "inside", "length", "no number", "another key", "another directory"],
)
def test_what_readers_could_read_in_two_ways_stays_open(worker, tmp_path, second):
    found = scanned(worker, laid(tmp_path, NUMBERS.tobytes(), TWO[0], second))
    assert found == {"model.onnx": ELSEWHERE, "model.onnx.data": {"Unknown"}}


def test_a_link_or_nothing_in_the_place_of_the_file_stays_open(worker, tmp_path):
    laid(tmp_path, NUMBERS.tobytes(), *TWO)
    (tmp_path / "model.onnx.data").rename(tmp_path / "other")
    (tmp_path / "model.onnx.data").touch()
    assert scanned(worker, tmp_path)["model.onnx"] == ELSEWHERE
    (tmp_path / "model.onnx.data").unlink()
    assert scanned(worker, tmp_path) == {"model.onnx": ELSEWHERE, "other": {"Unknown"}}
    (tmp_path / "model.onnx.data").symlink_to("other")
    found = scanned(worker, tmp_path)
    assert found == {"model.onnx": ELSEWHERE, "model.onnx.data": {"Link"}, "other": {"Unknown"}}


@pytest.mark.parametrize("name", ["module.pyc", "engine.plan", "weights", "model.onnx", "data"])
def test_only_a_name_that_says_numbers_is_taken_for_numbers(worker, tmp_path, name):
    (tmp_path / "net.onnx").write_bytes(model(tensor("a", 24, location=name)))
    (tmp_path / name).write_bytes(NUMBERS.tobytes())
    assert scanned(worker, tmp_path)["net.onnx"] == ELSEWHERE
    assert "Unknown" in scanned(worker, tmp_path)[name]


def other_formats() -> dict[str, bytes]:
    control = harmless()["control-flow.onnx"]
    assert isinstance(control, bytes)
    return {
        "a pickle": pickle.dumps(print),
        "a model with control flow": control,
        # a field that ours does not know, and a lenient reader passes over
        "a model of unknown fields": model() + b"\xa2\x7d\x04abcd",
        "a program": b"\x7fELF" + bytes(64),
        "an archive at its end": NUMBERS.tobytes() + zipped({"a.pkl": pickle.dumps(print)}),
        "source code": b"import os\nprint(os.getcwd())\n",
        "a format that is not read": b"GGUF" + NUMBERS.tobytes(),
    }


@pytest.mark.parametrize("kind", other_formats())
def test_another_format_is_not_made_clean_by_calling_it_numbers(worker, tmp_path, kind):
    data = other_formats()[kind]
    whole = tensor("a", len(data))
    whole.data_type = TensorProto.UINT8
    outcomes = {file.outcome.value for file in scan_all(laid(tmp_path, data, whole), worker)}
    assert "clean" not in outcomes

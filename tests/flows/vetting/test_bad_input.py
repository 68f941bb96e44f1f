"""What a supplier or a machine can get wrong: a clear message, the documented exit code, and nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from onnx import TensorProto, helper, numpy_helper

Variant = Callable[..., Path]


def graph(*, end: str = "Identity", external: bool = False) -> bytes:
    """A tiny network as ONNX; the last operator is `end`, the weights of the first layer may lie outside."""
    random = np.random.RandomState(0)
    first = numpy_helper.from_array(random.randn(64, 16).astype(np.float32), "first")
    if external:
        first.ClearField("raw_data")
        first.data_location = TensorProto.EXTERNAL
        first.external_data.add(key="location", value="../../../../etc/passwd")
    second = numpy_helper.from_array(random.randn(16, 10).astype(np.float32), "second")
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["raw"]),
    ]
    if end == "If":
        condition = numpy_helper.from_array(np.array(True), "condition")
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 10])
        branch = helper.make_graph([helper.make_node("Identity", ["raw"], ["out"])], "branch", [], [out])
        nodes.append(helper.make_node("If", ["condition"], ["logits"], then_branch=branch, else_branch=branch))
    else:
        condition = None
        nodes.append(helper.make_node(end, ["raw"], ["logits"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    weights = [w for w in (first, second, condition) if w is not None]
    made = helper.make_graph(nodes, "network", [x], [logits], weights)
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def with_nan(weights: bytes) -> bytes:
    tensors = safetensors.torch.load(weights)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    return safetensors.torch.save(tensors)


ONNX = {"model": "model.onnx", "format": "onnx", "architecture": None}
HUGE_HEADER = struct.pack("<Q", 2**32) + b"{}"
HUGE = json.dumps({"w": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}}).encode()
HUGE_TENSOR = struct.pack("<Q", len(HUGE)) + HUGE
NOT_UNDERSTOOD: dict[str, tuple[Callable[[bytes], bytes], dict[str, Any], str]] = {
    "truncated ONNX": (lambda _: graph()[:-200], ONNX, "truncated"),
    "external data": (lambda _: graph(external=True), ONNX, "in a file beside the model"),
    "unknown operator": (lambda _: graph(end="Frobnicate"), ONNX, "Frobnicate"),
    "control flow": (lambda _: graph(end="If"), ONNX, "If"),
    "weights of another architecture": (lambda w: w, {"architecture": "vgg-small"}, "vgg-small"),
    "NaN weights": (with_nan, {}, "NaN"),
    "wrong input shape": (lambda w: w, {"input_shape": [1, 12, 12]}, "shape"),
    "wrong class count": (lambda w: w, {"classes": 12}, "12"),
    "4 GiB tensor": (lambda _: HUGE_TENSOR, {}, "w"),
    "4 GiB header": (lambda _: HUGE_HEADER, {}, "header"),
    "pickle renamed": (lambda _: pickle.dumps({"a": 1}), ONNX, "pickle"),
    "another format": (lambda w: w, {"model": "model.pt", "format": "pytorch"}, "pytorch"),
}


@pytest.mark.parametrize("what", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_inconclusive(what, vetgate, variant, honest, home, quick):
    make, fields, word = NOT_UNDERSTOOD[what]
    directory = variant(make((honest / "model.safetensors").read_bytes()), **fields)
    before = contents(home / "store")

    done = vetgate("vet", directory, "--json", **quick)

    assert done.code == 3, done
    assert done.blob["verdict"] == "INCONCLUSIVE" and done.blob["repair"] is None
    assert word in done.blob["reasons"][0]
    assert_harmless(done, before, home / "store")
    assert vetgate("promote", "digits-honest", "--submission", done.blob["manifest_sha256"]).code == 1


def test_a_link_out_of_the_submission_is_not_followed(vetgate, variant, home, quick):
    directory = variant()
    (directory / "README.md").symlink_to("/etc/passwd")
    before = contents(home / "store")

    done = vetgate("vet", directory, "--json", **quick)

    assert done.code == 3 and "symbolic link" in done.blob["reasons"][0]
    assert contents(home / "store") == before


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"colour": "blue"}, "colour"), ({"classes": "ten"}, "classes"), ({"model": "../model.onnx"}, "model")],
)
def test_a_wrong_submission_yaml_is_a_usage_error(vetgate, variant, home, fields, word):
    directory = variant(**{k: v for k, v in fields.items() if k != "model"})
    if "model" in fields:
        text = (directory / "submission.yaml").read_text()
        (directory / "submission.yaml").write_text(text.replace("model.safetensors", "../model.onnx"))
    before = contents(home / "store")

    for command in ("vet", "submit"):
        done = vetgate(command, directory, "--json")
        assert done.code == 4 and word in done.err and done.blob["exit_code"] == 4
        assert_harmless(done, before, home / "store")


def test_a_submission_without_reference_data_is_told_which_field_to_write(vetgate, variant, home, quick):
    done = vetgate("vet", variant(reference_data=None), "--json", **quick)

    assert done.code == 3 and done.blob["verdict"] == "INCONCLUSIVE"
    (method,) = [item for item in done.blob["methods"] if item["name"] == "neural_cleanse"]
    assert "name `reference_data` in submission.yaml" in method["failure"]
    # of images that show nothing; they prove nothing, and tell where to look first
    assert "images that show nothing: labels " in method["failure"] and method["statistic"] is not None
    assert "subject" not in method["failure"] and "None" not in method["failure"]


def test_a_data_set_that_is_not_registered_is_an_error(vetgate, variant, home, quick):
    before = contents(home / "store")

    done = vetgate("vet", variant(reference_data="mnist"), "--json", **quick)

    assert done.code == 2 and "vetgate data add mnist" in done.err
    assert_harmless(done, before, home / "store")


def test_an_unreachable_data_remote_is_an_error(vetgate, variant, tmp_path, quick):
    elsewhere = {"VETGATE_HOME": tmp_path / "home", "VETGATE_DATA_REMOTE": "s3://bucket/data"}
    unreachable = {"VETGATE_S3_ENDPOINT": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}

    done = vetgate("vet", variant(), "--json", **quick, **elsewhere, **unreachable)

    assert done.code == 2 and "127.0.0.1:9" in done.err and "Traceback" not in done.err


def test_a_full_disk_is_an_error_and_leaves_no_part_of_a_file(alone, variant, tmp_path):
    store = tmp_path / "store"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"

    done = alone("submit", variant(), prelude=limit, VETGATE_HOME=tmp_path / "home", VETGATE_STORE=store)

    assert done.code == 2 and "Traceback" not in done.err
    assert not any(size == 20000 for _, size in sizes(tmp_path))
    assert alone("submit", tmp_path / "submission", VETGATE_HOME=tmp_path / "home", VETGATE_STORE=store).code == 0


def test_a_full_store_is_an_error_and_keeps_what_it_held(alone, vetgate, variant, tmp_path, honest):
    store = tmp_path / "store"
    store.mkdir()
    small = mounted(f"mount -t tmpfs -o size=64k none {store} && echo kept > {store}/kept")

    done = alone("submit", variant(), around=small, VETGATE_HOME=tmp_path / "home", VETGATE_STORE=store)

    assert done.code == 2 and "No space left" in done.err and "Traceback" not in done.err


def test_a_store_mounted_read_only_is_an_error(alone, vetgate, variant, tmp_path):
    store = tmp_path / "store"
    own = {"VETGATE_HOME": tmp_path / "home", "VETGATE_STORE": store}
    directory = variant()
    assert vetgate("submit", directory, **own).code == 0
    before = contents(store)
    sealed = mounted(f"mount --bind {store} {store} && mount -o remount,ro,bind {store}")
    (directory / "README.md").write_text("something new")

    done = alone("submit", directory, around=sealed, **own)

    assert done.code == 2 and "Read-only" in done.err and "Traceback" not in done.err
    assert contents(store) == before


def test_a_store_where_nothing_can_be_written_is_an_error(vetgate, variant):
    done = vetgate("submit", variant(), VETGATE_STORE="/proc/vetgate")

    assert done.code == 2 and "/proc/vetgate" in done.err and "Traceback" not in done.err


def contents(directory: Path) -> dict[str, str]:
    """Every file under a directory and its SHA-256; without the log of what was submitted and tried."""
    files = [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sizes(directory: Path) -> list[tuple[Path, int]]:
    return [(path, path.stat().st_size) for path in directory.rglob("*") if path.is_file()]


def assert_harmless(done: Any, before: dict[str, str], store: Path) -> None:
    """No traceback, nothing promoted, and all that was stored before is still there, bit for bit."""
    assert "Traceback" not in done.out + done.err
    after = contents(store)
    assert {key: after.get(key) for key in before} == before
    assert not any(key.startswith("vetted/") for key in after if key not in before)


def mounted(mount: str) -> tuple[str, ...]:
    """A command line that runs another one where `mount` was done first, in a mount namespace of its own."""
    unshare = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-rm")
    inside = (*unshare, "sh", "-c", f'{mount} && exec "$@"', "sh")
    tried = subprocess.run([*unshare, "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True)
    if tried.returncode != 0:
        pytest.skip("this machine does not let tests mount anything")
    return inside

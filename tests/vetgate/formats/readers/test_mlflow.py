"""MLflow's directories: the graph of the onnx flavor is read, pickles and code are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from vetgate.errors import NotUnderstood
from vetgate.formats.canonical import canonical
from vetgate.formats.inspect import inspect_bytes
from vetgate.formats.submission import Submission

ONNX_FLAVOR = """
flavors:
  onnx: {code: null, data: model.onnx, onnx_version: 1.20.0, providers: [CPUExecutionProvider]}
  python_function: {data: model.onnx, env: {conda: conda.yaml}, loader_module: mlflow.onnx}
mlflow_version: 3.17.2
"""
SKLEARN = "flavors: {sklearn: {pickled_model: model.pkl}, python_function: {loader_module: mlflow.sklearn}}"


def described(submission: Submission) -> Submission:
    return submission.model_copy(update={"model": "MLmodel", "format": "mlflow"})


def test_the_graph_is_the_one_that_is_handed_in_alone(
    cnn: onnx.ModelProto, submit: Callable[..., Any], tmp_path: Path
) -> None:
    _, submission = submit(cnn)
    members = {"MLmodel": ONNX_FLAVOR.encode(), "model.onnx": cnn.SerializeToString(), "conda.yaml": b"name: x"}
    directory = tmp_path / "logged"
    directory.mkdir()
    for name, data in members.items():
        (directory / name).write_bytes(data)
    assert inspect_bytes(directory, described(submission)) == members
    alone = canonical({submission.model: members["model.onnx"]}, submission)
    logged = canonical(members, described(submission))
    assert alone is not None and logged is not None and alone.data == logged.data
    assert logged.changes == {"model": "model.onnx", "format": "onnx", **alone.changes}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (SKLEARN, r"onnx flavor, got sklearn, python_function.*log_model"),
        (ONNX_FLAVOR.replace("mlflow_version", "run_id: !own 1\nmlflow_version"), "plain YAML"),
        (ONNX_FLAVOR.replace("data: model.onnx", "data: ../model.onnx"), "beside"),
        (ONNX_FLAVOR.replace("  python_function", "  pytorch: {}\n  python_function"), "pytorch"),
        ("- a list", "got none"),
        ("flavors: {onnx: {data: [1]}}", "`data`"),
    ],
)
def test_other_flavors_are_refused(text: str, match: str, cnn: onnx.ModelProto, submit: Callable[..., Any]) -> None:
    members = {"MLmodel": text.encode(), "model.onnx": cnn.SerializeToString()}
    with pytest.raises(NotUnderstood, match=match):
        canonical(members, described(submit(cnn)[1]))

"""What of the newer operators no older ones stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from vetgate.errors import NotUnderstood
from vetgate.formats.load import load_model

N = helper.make_node


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        (["x", "x", "x", "", "k", "k"], {}, "within an image"),
        (["x", "x", "x"], {"softcap": 2.0}, "without softcap"),
        (["x", "x", "x", "m"], {}, "truth values or float32"),
        (["x", "x", "x", "x"], {}, "a constant as input 3"),
        (["flat", "flat", "flat"], {"q_num_heads": 3, "kv_num_heads": 3}, "heads that divide"),
        (["flat", "flat", "flat"], {"q_num_heads": 4, "kv_num_heads": 2}, "as many heads"),
    ],
)
def test_attention_that_images_have_no_need_of_is_refused(
    inputs: list[str], attributes: dict[str, Any], message: str, make_graph: Callable[..., Any], submit: Any
) -> None:
    held = {
        "k": np.zeros((1, 2, 1, 4), np.float32),
        "m": np.zeros((4, 4), np.int64),
        "to": np.array([0, 4, 8], np.int64),
        "w": np.zeros((32, 3), np.float32),
    }
    nodes = [N("Reshape", ["x", "to"], ["flat"])] if "flat" in inputs else []
    nodes += [N("Attention", inputs, ["a"], **attributes), N("Flatten", ["a"], ["f"]), N("MatMul", ["f", "w"], ["y"])]
    used = {name for node in nodes for name in node.input}
    given = {name: value for name, value in held.items() if name in used}
    model = make_graph(nodes, given, shape=("N", 2, 4, 4), opset=23, ir_version=10)
    with pytest.raises(NotUnderstood, match=message):
        load_model(*submit(model, input_shape=[2, 4, 4]))

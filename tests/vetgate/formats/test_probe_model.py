"""What an image has a say in is followed with NaN; so nothing in a network may lose it."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.written import describe
from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.build import ELEMENTWISE, build
from vetgate.formats.onnx.nodes import Node
from vetgate.formats.onnx.operands import Operands
from vetgate.formats.onnx.operators.reductions import FUNCTIONS
from vetgate.formats.probe_model import probe

F32 = np.float32
ONE, SIX, AXES = np.array(1, F32), np.array(6, F32), np.array([2, 3], np.int64)
VECTOR = np.full(3, 0.5, F32)
WINDOW = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
# operator, attributes, constants behind the image (N, 3, 4, 4)
OTHERS: list[tuple[str, dict[str, Any], list[np.ndarray]]] = [
    ("Clip", {}, [ONE, SIX]),
    ("Clip", {}, [ONE]),
    ("PRelu", {}, [VECTOR.reshape(3, 1, 1)]),
    *((name, {}, [np.array(0, F32)]) for name in ("Max", "Min", "Mul", "Add", "Sub")),
    ("Div", {}, [SIX]),
    ("MaxPool", WINDOW, []),
    ("MaxPool", {**WINDOW, "pads": (0, 0, 2, 2)}, []),
    ("AveragePool", WINDOW, []),
    ("AveragePool", {**WINDOW, "pads": (0, 0, 1, 1)}, []),
    ("LRN", {"size": 3}, []),
    ("Conv", {"pads": (1, 1, 1, 1)}, [np.zeros((3, 3, 3, 3), F32)]),
    ("MatMul", {}, [np.zeros((4, 4), F32)]),
    ("BatchNormalization", {}, [VECTOR, VECTOR, VECTOR, VECTOR]),
    ("InstanceNormalization", {}, [VECTOR, VECTOR]),
    ("LayerNormalization", {"axis": -1}, [np.zeros(4, F32)]),
    ("GroupNormalization", {"num_groups": 3}, [VECTOR, VECTOR]),
    ("Resize", {"mode": "linear", "axes": (2, 3)}, [np.array([], F32), np.array([], F32), np.array([8, 8], np.int64)]),
    *((name, {}, [AXES]) for name in FUNCTIONS),
]


@pytest.mark.parametrize(("op", "attributes", "constants"), [*((name, {}, []) for name in ELEMENTWISE), *OTHERS])
def test_an_image_of_nan_is_seen_in_what_it_reaches_and_in_nothing_else(
    op: str, attributes: dict[str, Any], constants: list[np.ndarray]
) -> None:
    held = {f"k{i}": value for i, value in enumerate(constants)}
    node = Node(0, "n", op, ("x", *held), ("y",), attributes)
    module = build(Operands(node, held, frozenset({0}), 21)).module.eval()
    x = torch.full((2, 3, 4, 4), 0.5)
    x[0] = math.nan
    with torch.no_grad():
        first, second = module(x)
    assert bool(first.isnan().all()) and bool(second.isfinite().all())


@pytest.mark.parametrize(("size", "refused"), [(0.0, False), (1e-22, True), (1e-18, False)])
def test_logits_that_runtimes_may_take_for_zero_are_refused(size: float, refused: bool) -> None:
    described = describe(
        model="model.safetensors", format="safetensors", architecture="small-cnn", input_shape=(1, 4, 4)
    )
    head = nn.Linear(16, 3)
    with torch.no_grad():
        for weights in head.parameters():
            weights.copy_(torch.linspace(-size, size, weights.numel()).view(weights.shape))
    model = nn.Sequential(nn.Flatten(), head)
    with pytest.raises(NotUnderstood, match="scaled down") if refused else nullcontext():
        probe(model, "0", described)

"""Constants are computed by ONNX's own rules of types; what runtimes round otherwise is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.folding.fold import FOLDS, MAX_FOLDED, fold
from vetgate.formats.onnx.nodes import Node

F32, I64, I32 = np.float32, np.int64, np.int32


def i64(*values: int) -> np.ndarray:
    return np.array(values, I64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, F32)


CUBE = np.arange(24, dtype=F32).reshape(2, 3, 4)
# operator, inputs, attributes
SOUND: list[tuple[str, list[np.ndarray | None], dict[str, Any]]] = [
    ("Add", [i64(1, 2), np.array(3, I64)], {}),
    ("Sub", [f32(1, 2), f32(0.5)], {}),
    ("Mul", [i64(-3, 2), i64(5)], {}),
    ("Div", [i64(-7, 7, -7, 7), i64(2, -2, -2, 2)], {}),
    ("Div", [f32(1, 2), f32(3)], {}),
    ("Mod", [i64(-7, 7, -7, 7), i64(2, -2, -2, 2)], {}),
    ("Mod", [i64(-7, 7, -7, 7), i64(2, -2, -2, 2)], {"fmod": 1}),
    ("Mod", [f32(-7.5, 7.5), f32(2, -2)], {"fmod": 1}),
    ("Max", [i64(1, 5), i64(3), i64(4)], {}),
    ("Min", [f32(1, 5), f32(3)], {}),
    ("Sum", [f32(1, 5), f32(3), f32(2)], {}),
    ("Pow", [f32(1, 5), f32(3)], {}),
    ("Neg", [i64(1, -5)], {}),
    ("Abs", [f32(1, -5)], {}),
    ("Floor", [f32(1.5, -5.5)], {}),
    ("Ceil", [f32(1.5, -5.5)], {}),
    ("Round", [f32(1.5, -5.4, 2.5)], {}),
    ("Sign", [f32(1.5, -5.4, 0)], {}),
    ("Sign", [i64(-7, 3, 0)], {}),
    ("CumSum", [i64(1, 5, -2), i64(0).reshape(())], {}),
    ("CumSum", [f32(1, 5, -2), i64(-1).reshape(())], {"exclusive": 1, "reverse": 1}),
    ("Xor", [np.array([True, False]), np.array([True])], {}),
    ("Clip", [f32(1.5, -5.5, 0), f32(-1).reshape(())], {}),
    ("Clip", [f32(1.5, -5.5, 0), f32(-1).reshape(()), f32(1).reshape(())], {}),
    ("BatchNormalization", [f32(1, 2, 3, 4).reshape(2, 2), f32(2, 1), f32(0, 1), f32(0, 3), f32(1, 4)], {}),
    ("Relu", [f32(1.5, -5.5)], {}),
    ("Sigmoid", [f32(1.5, -5.5)], {}),
    ("Equal", [i64(1, 5), i64(5)], {}),
    ("CumSum", [i64(1, 5, 7), np.array(0, I64)], {"reverse": 1, "exclusive": 1}),
    ("CumSum", [CUBE, np.array(1, I64)], {}),
    ("Sign", [i64(1, 0, -7)], {}),
    ("Round", [f32(0.5, 1.5, -0.5)], {}),
    ("Sin", [f32(0.5, 1.5, -0.5)], {}),
    ("Clip", [f32(0.5, 1.5, -0.5), np.array(0, F32)], {}),
    ("Softmax", [CUBE], {"axis": 1}),
    ("Less", [i64(1, 5), i64(5)], {}),
    ("Greater", [f32(1, 5), f32(2)], {}),
    ("LessOrEqual", [i64(1, 5), i64(5)], {}),
    ("GreaterOrEqual", [f32(1, 5), f32(2)], {}),
    ("Not", [np.array([True, False])], {}),
    ("And", [np.array([True, False]), np.array([True])], {}),
    ("Or", [np.array([True, False]), np.array([True])], {}),
    ("Cast", [f32(2, -5, 2.7, -2.7)], {"to": 7}),
    ("Cast", [i64(2, 0)], {"to": 9}),
    ("Cast", [i64(2, 0)], {"to": 6}),
    ("Cast", [i64(2, 0)], {"to": 1}),
    ("Where", [np.array([True, False]), i64(2, 0), i64(7)], {}),
    ("Identity", [i64(2, 0)], {}),
    ("Shape", [CUBE], {}),
    ("Shape", [CUBE], {"start": 1, "end": -1}),
    ("Size", [CUBE], {}),
    ("Gather", [CUBE, i64(-1, 0)], {"axis": 1}),
    ("Gather", [CUBE, np.array(1, I64)], {}),
    ("Reshape", [CUBE, i64(0, -1, 2)], {}),
    ("Transpose", [CUBE], {}),
    ("Transpose", [CUBE], {"perm": [1, 0, 2]}),
    ("Squeeze", [CUBE[:1], i64(0)], {}),
    ("Squeeze", [CUBE[:1]], {}),
    ("Unsqueeze", [CUBE, i64(0, -1)], {}),
    ("Flatten", [CUBE], {"axis": 2}),
    ("Flatten", [CUBE], {"axis": -1}),
    ("Concat", [CUBE, CUBE], {"axis": -1}),
    ("Slice", [CUBE, i64(3, 0), i64(-100, 2), i64(2, 1), i64(-2, 1)], {}),
    ("Slice", [CUBE, i64(1), i64(2**62)], {}),
    ("Split", [CUBE, i64(1, 3)], {"axis": 2}),
    ("Split", [CUBE], {"axis": 1, "num_outputs": 2}),
    ("Expand", [CUBE[:, :1], i64(5, 1, 3, 1)], {}),
    ("ConstantOfShape", [i64(2, 3)], {"value": numpy_helper.from_array(i64(4))}),
    ("ConstantOfShape", [i64(2, 3)], {}),
    ("Range", [np.array(2, I64), np.array(-5, I64), np.array(-3, I64)], {}),
    ("Range", [np.array(2, F32), np.array(5, F32), np.array(1, F32)], {}),
    ("Tile", [CUBE, i64(1, 2, 1)], {}),
    ("MatMul", [CUBE, CUBE[0].T.copy()], {}),
    ("ReduceSum", [CUBE, i64(0, -1)], {"keepdims": 0}),
    ("ReduceSum", [CUBE.astype(I64)], {}),
    ("ReduceSum", [CUBE], {"noop_with_empty_axes": 1}),
    ("ReduceProd", [i64(2, 3, 4)], {"keepdims": 0}),
    ("ReduceProd", [np.arange(1, 13, dtype=I64).reshape(3, 4), i64(0)], {"keepdims": 1}),
    ("ReduceMax", [CUBE, i64(1)], {}),
    ("ReduceMin", [CUBE, i64(1)], {}),
    ("ReduceMean", [CUBE, i64(1)], {}),
    ("ReduceL2", [CUBE, i64(1)], {}),
]
COUNTS = {"Split": 2}


def made(op: str, given: Sequence[np.ndarray | None], attributes: dict[str, Any], outputs: int = 1) -> Node:
    values = {
        key: tuple(value)
        if isinstance(value, list)
        else value
        if isinstance(value, int)
        else numpy_helper.to_array(value)
        for key, value in attributes.items()
    }
    inputs = tuple(f"k{i}" if value is not None else "" for i, value in enumerate(given))
    return Node(0, "n", op, inputs, tuple(f"y{i}" for i in range(outputs)), values)


def run(op: str, given: Sequence[np.ndarray | None], attributes: dict[str, Any], outputs: int) -> list[np.ndarray]:
    names = [f"k{i}" if value is not None else "" for i, value in enumerate(given)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(names, given, strict=True)
        if value is not None
    ]
    infos = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)]
    graph = helper.make_graph([node], "g", inputs, infos)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: value for name, value in zip(names, given, strict=True) if value is not None}
    return list(session.run(None, feeds))


@pytest.mark.parametrize(("op", "given", "attributes"), SOUND, ids=lambda v: v if isinstance(v, str) else "")
def test_an_operator_on_constants_agrees_with_onnxruntime(
    op: str, given: list[np.ndarray | None], attributes: dict[str, Any]
) -> None:
    outputs = attributes.get("num_outputs", COUNTS.get(op, 1))
    found = fold(made(op, given, attributes, outputs), given, 21)
    for ours, theirs in zip(found, run(op, given, attributes, outputs), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_every_operator_that_is_folded_is_tested() -> None:
    assert set(FOLDS) <= {op for op, _, _ in SOUND}


@pytest.mark.parametrize(
    ("op", "given", "attributes", "says"),
    [
        ("Add", [i64(1), f32(1)], {}, "inputs of one type"),
        ("Pow", [i64(2), f32(-1)], {}, "inputs of one type"),
        ("Pow", [i64(2), i64(3)], {}, "int64"),
        ("Add", [i64(2**63 - 1), i64(1)], {}, "fit in int64"),
        ("Mul", [np.array([2**16], I32), np.array([2**16], I32)], {}, "fit in int32"),
        ("Div", [np.array([-(2**31)], I32), np.array([-1], I32)], {}, "fit in int32"),
        ("Div", [i64(1), i64(0)], {}, "division by zero"),
        ("Div", [f32(1), f32(0)], {}, "a finite, moderate constant"),
        ("Mod", [i64(1), i64(0)], {}, "division by zero"),
        ("Mod", [f32(1), f32(2)], {}, "floating point"),
        ("Mod", [i64(1), i64(2)], {"fmod": 2}, "fmod 2"),
        ("Neg", [i64(-(2**63))], {}, "fit in int64"),
        ("Cast", [f32(3e38)], {"to": 7}, "fit in int64"),
        ("Cast", [i64(2**40)], {"to": 6}, "fit in int32"),
        ("Cast", [i64(2**24 + 1)], {"to": 1}, "float32 rounds"),
        ("Cast", [f32(1)], {"to": 2}, "ONNX data type 2"),
        ("Reshape", [CUBE, i64(5, -1)], {}, "reshape"),
        ("Reshape", [CUBE, i64(-1, 0)], {"allowzero": 1}, "0 beside -1"),
        ("Expand", [f32(1), i64(1 << 14, 1 << 14)], {}, "the shape"),
        ("ConstantOfShape", [i64(1 << 14, 1 << 14)], {}, "the shape"),
        ("ConstantOfShape", [i64(-1)], {}, "the shape"),
        ("Tile", [CUBE, i64(1, 1 << 20, 8)], {}, "repeats"),
        ("Range", [np.array(0, I64), np.array(2**40, I64), np.array(1, I64)], {}, "0 to"),
        ("Range", [np.array(0, F32), np.array(1, F32), np.array(0.1, F32)], {}, "fractions"),
        ("Where", [i64(1), i64(1), i64(1)], {}, "no truth values"),
        ("Gather", [CUBE, i64(9)], {}, "out of bounds"),
        ("Split", [CUBE, i64(1, 2)], {"axis": 2}, "parts of an axis of 4"),
        ("Sqrt", [f32(-1)], {}, "a finite, moderate constant"),
        ("Conv", [CUBE], {}, "a constant as input 1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_runtimes_round_wrap_or_cannot_hold_is_refused(
    op: str, given: list[np.ndarray | None], attributes: dict[str, Any], says: str
) -> None:
    with pytest.raises(NotUnderstood, match=says):
        fold(made(op, given, attributes, COUNTS.get(op, 1)), given, 21)


@pytest.mark.parametrize(
    ("op", "given"),
    [
        ("Expand", [f32(1), i64(MAX_FOLDED + 1)]),
        ("Add", [np.zeros((1 << 16, 1), F32), np.zeros((1, 1 << 16), F32)]),
        ("Where", [np.zeros((1 << 16, 1), np.bool_), np.zeros((1, 1 << 16), F32), f32(0)]),
        ("MatMul", [np.zeros((1 << 16, 1), F32), np.zeros((1, 1 << 16), F32)]),
        ("Gather", [np.zeros((1, 1 << 16), F32), np.zeros(1 << 16, I64)]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_nothing_large_is_made_before_it_is_refused(op: str, given: list[np.ndarray | None]) -> None:
    with pytest.raises(NotUnderstood, match=r"computed beforehand|the shape"):
        fold(made(op, given, {}), given, 21)

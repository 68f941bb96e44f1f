"""Every operator of the table, against onnxruntime on random images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from vetgate.errors import NotUnderstood
from vetgate.formats.load import load_model
from vetgate.formats.onnx.build import BUILDERS, ELEMENTWISE
from vetgate.formats.onnx.folding.fold import FOLDS
from vetgate.formats.onnx.reading.forms import RULES
from vetgate.formats.onnx.table import OPERATORS

F32, I64 = np.float32, np.int64


def noise(*shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) * 0.5).astype(F32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


# operator, attributes, constants after the image (None: left out), opset; the image is (N, 2, 9, 7)
CASES: list[tuple[str, dict[str, Any], list[np.ndarray | None], int]] = [
    ("Conv", {}, [noise(3, 2, 3, 3)], 17),
    ("Conv", {"pads": [1, 2, 1, 2], "strides": [2, 1], "dilations": [1, 2]}, [noise(3, 2, 3, 2), noise(3)], 11),
    ("Conv", {"pads": [0, 1, 2, 0], "strides": [2, 2]}, [noise(3, 2, 3, 3), noise(3)], 13),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [noise(4, 2, 4, 3), noise(4)], 13),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2], "group": 2}, [noise(4, 1, 4, 3), noise(4)], 15),
    ("Conv", {"auto_pad": "VALID", "group": 2, "kernel_shape": [1, 1]}, [noise(6, 1, 1, 1), None], 20),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, [], 17),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}, [], 17),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, [], 11),
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}, [], 12),
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, [], 13),
    ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, [], 13),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}, [], 17),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, [], 20),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, [], 17),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, [], 20),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}, [], 17),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "count_include_pad": 1}, [], 17),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, [], 17),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}, [], 17),
    ("GlobalAveragePool", {}, [], 17),
    ("GlobalMaxPool", {}, [], 17),
    ("LRN", {"size": 3, "alpha": 0.1, "beta": 0.5, "bias": 2.0}, [], 13),
    ("BatchNormalization", {"epsilon": 1e-3}, [noise(2), noise(2), noise(2), np.abs(noise(2))], 13),
    ("BatchNormalization", {}, [noise(2), noise(2), noise(2), np.abs(noise(2))], 15),
    ("PRelu", {}, [noise(2, 1, 1)], 16),
    ("MatMul", {}, [noise(7, 5)], 13),
    ("MatMul", {}, [noise(2, 7, 5)], 13),
    ("Add", {}, [noise(2, 1, 1)], 14),
    ("Sub", {}, [noise(1, 2, 9, 7)], 13),
    ("Mul", {}, [noise(1)], 14),
    ("Div", {}, [np.array(0.3, F32)], 14),
    ("Pow", {}, [np.array(2.0, F32)], 15),
    ("Max", {}, [np.array(0.5, F32)], 13),
    ("Min", {}, [noise(2, 1, 1)], 13),
    *(
        (name, {}, [], 20)
        for name in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Selu", "Elu", "Celu", "Gelu")
    ),
    *((name, {}, [], 20) for name in ("Mish", "HardSigmoid", "HardSwish", "LeakyRelu", "Identity", "Flatten")),
    *((name, {}, [], 17) for name in ("Abs", "Neg", "Exp", "Sqrt", "Erf", "Log", "Reciprocal", "Relu", "Identity")),
    ("LeakyRelu", {"alpha": 0.3}, [], 16),
    ("Elu", {"alpha": 0.3}, [], 17),
    ("Celu", {"alpha": 0.3}, [], 12),
    ("Selu", {"alpha": 0.3, "gamma": 2.0}, [], 17),
    ("Gelu", {"approximate": "tanh"}, [], 20),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.1}, [], 17),
    ("Clip", {}, [np.array(0.2, F32), np.array(0.7, F32)], 13),
    ("Clip", {}, [None, np.array(0.7, F32)], 11),
    ("Softmax", {"axis": 1}, [], 17),
    ("Softmax", {"axis": 1}, [], 11),
    ("LogSoftmax", {}, [], 17),
    ("LogSoftmax", {}, [], 12),
    ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, [], 13),
    ("ReduceMean", {"keepdims": 1}, [ints(-1)], 18),
    ("ReduceSum", {}, [ints(2)], 13),
    ("ReduceMax", {"axes": [2, 3]}, [], 13),
    ("Dropout", {}, [], 13),
    ("Dropout", {"ratio": 0.3}, [], 11),
    ("Cast", {"to": 1}, [], 17),
    ("Flatten", {"axis": -3}, [], 13),
    ("Reshape", {}, [ints(0, -1)], 14),
    ("Reshape", {"allowzero": 1}, [ints(-1, 2, 63)], 14),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [], 13),
    ("Unsqueeze", {}, [ints(1, -1)], 13),
    ("Unsqueeze", {"axes": [2]}, [], 11),
    ("Concat", {"axis": -1}, [], 13),
    ("Pad", {}, [ints(0, 0, 1, 2, 0, 0, 0, 3), np.array(0.5, F32)], 13),
    ("Pad", {"mode": "reflect"}, [ints(0, 0, 1, 2, 0, 0, 2, 1)], 13),
    ("Pad", {"mode": "edge"}, [ints(1, 2, 2, 1), None, ints(2, 3)], 18),
    ("Pad", {}, [ints(0, 1, -1, 0, 0, 0, 0, -2)], 17),
    ("Gather", {"axis": 1}, [ints(1, -2, 1)], 13),
    ("Gather", {"axis": 2}, [np.array(-1, I64)], 13),
    ("Slice", {}, [ints(1, -3), ints(2**62, 7), ints(2, 3), ints(2, 1)], 13),
    ("Squeeze", {}, [], 13),
    ("Slice", {}, [ints(-1), ints(-100), ints(1), ints(-1)], 13),
    ("Slice", {"starts": [1], "ends": [-1], "axes": [2]}, [], 9),
    ("Pad", {"pads": [0, 0, 1, 2, 0, 0, 0, 3], "value": 0.5}, [], 9),
    ("Pad", {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "mode": "reflect"}, [], 10),
    ("Clip", {"min": 0.2, "max": 0.7}, [], 9),
    ("Gather", {"axis": 3}, [np.array([[0, 1], [-1, 2]], I64)], 13),
    ("GatherND", {}, [], 13),
    ("Expand", {}, [ints(1, 2, 1, 7)], 13),
    ("Expand", {}, [ints(4, 1, 1, 1, 1)], 13),
    ("Tile", {}, [ints(1, 2, 1, 3)], 13),
    ("Trilu", {}, [], 14),
    ("Trilu", {"upper": 0}, [np.array(1, I64)], 20),
    ("DepthToSpace", {"blocksize": 2}, [], 13),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [], 11),
    ("SpaceToDepth", {"blocksize": 3}, [], 13),
    ("Sin", {}, [], 13),
    ("Cos", {}, [], 13),
    ("Sum", {}, [noise(2, 1, 1)], 13),
    ("Sum", {}, [noise(2, 1, 1), noise(1), noise(7)], 9),
    ("Mean", {}, [noise(2, 1, 1), noise(1)], 13),
    ("Max", {}, [np.array(0.5, F32), noise(2, 1, 1)], 13),
    ("Min", {}, [], 13),
    ("CastLike", {}, [np.array(0.5, F32)], 19),
    ("Split", {"axis": 1}, [ints(1, 1)], 13),
    ("Split", {"axis": -2, "split": [4, 5]}, [], 11),
    ("Split", {"axis": 2}, [ints(2, 7)], 18),
    *((f"Reduce{name}", {"axes": [2, 3]}, [], 13) for name in ("Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")),
    *((f"Reduce{name}", {"keepdims": 0}, [ints(-1)], 18) for name in ("Min", "Prod", "L1", "L2", "LogSum", "Max")),
    ("LayerNormalization", {}, [noise(7), noise(7)], 17),
    ("LayerNormalization", {"axis": -2, "epsilon": 1e-3}, [noise(9, 7)], 20),
    ("LayerNormalization", {"axis": 1}, [noise(2, 9, 7), noise(2, 9, 7)], 21),
    ("RMSNormalization", {"epsilon": 1e-3}, [noise(7)], 23),
    ("RMSNormalization", {"axis": -2}, [noise(9, 7)], 24),
    ("Swish", {}, [], 24),
    ("Swish", {"alpha": 0.7}, [], 24),
    ("InstanceNormalization", {"epsilon": 1e-3}, [noise(2), noise(2)], 13),
    ("GroupNormalization", {"num_groups": 1}, [noise(2), noise(2)], 21),
    ("GroupNormalization", {"num_groups": 2, "epsilon": 1e-2}, [noise(2), noise(2)], 21),
    ("ConvTranspose", {}, [noise(2, 3, 3, 2)], 11),
    (
        "ConvTranspose",
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 1, 0], "output_padding": [1, 2], "dilations": [2, 1]},
        [noise(2, 2, 3, 2), noise(4)],
        13,
    ),
    ("Einsum", {"equation": "bchw,wk->bhck"}, [noise(7, 4)], 13),
    ("Where", {}, [noise(2, 1, 7)], 16),
    ("Upsample", {"mode": "nearest"}, [np.array([1, 1, 2, 1.5], F32)], 9),
    ("Upsample", {"mode": "linear"}, [np.array([1, 1, 2, 3], F32)], 9),
    ("Resize", {"mode": "nearest"}, [np.array([1, 1, 2, 3], F32)], 10),
    *(
        (
            "Resize",
            {"mode": mode, "coordinate_transformation_mode": place, "axes": [2, 3]},
            [None, None, ints(*size)],
            18,
        )
        for mode in ("nearest", "linear", "cubic")
        for place in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
        for size in ((13, 4), (1, 11))
    ),
    *(
        ("Resize", {"mode": "nearest", "nearest_mode": rounding}, [None, np.array([1, 1, 1.7, 0.6], F32)], 19)
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    ("Resize", {"mode": "linear"}, [np.zeros(0, F32), np.array([1, 1, 1.7, 0.6], F32)], 11),
    ("Resize", {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}, [None, np.array([1, 1, 2, 2], F32)], 18),
    ("Resize", {"mode": "linear", "axes": [2, 3]}, [None, None, ints(5, 14)], 18),
]
# what computes shapes and constants: the operator between a constant and the image it is added to
ON_CONSTANTS: list[tuple[str, dict[str, Any], list[np.ndarray], int]] = [
    ("Size", {}, [noise(3, 4)], 13),
    ("ConstantOfShape", {"value": numpy_helper.from_array(np.array([0.5], F32))}, [ints(9, 7)], 13),
    ("Range", {}, [np.array(1, F32), np.array(8, F32), np.array(1, F32)], 13),
    ("Mod", {}, [ints(-7, 7, 5, -5, 3, 2, 1), ints(3, -3, 2, -2, 5, 5, 5)], 13),
    ("Mod", {"fmod": 1}, [noise(7) * 9, noise(1)], 13),
    ("CumSum", {}, [noise(9, 7), np.array(1, I64)], 14),
    ("CumSum", {"exclusive": 1, "reverse": 1}, [noise(9, 7), np.array(0, I64)], 14),
    *((name, {}, [noise(7) * 9], 13) for name in ("Ceil", "Floor", "Round", "Sign")),
    ("Not", {}, [noise(7) > 0], 13),
    *((name, {}, [ints(1, 2, 3, 4, 5, 6, 7), ints(4)], 16) for name in ("Equal", "Less", "Greater", "GreaterOrEqual")),
    ("LessOrEqual", {}, [noise(7), noise(1)], 16),
    *((name, {}, [noise(7) > 0, noise(9, 7) > 0], 13) for name in ("And", "Or", "Xor")),
]


@pytest.mark.parametrize(
    ("op", "attributes", "constants", "opset"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_an_operator_agrees_with_onnxruntime(
    op: str,
    attributes: dict[str, Any],
    constants: list[np.ndarray | None],
    opset: int,
    make_graph: Callable[..., Any],
    submit: Callable[..., Any],
    run_reference: Callable[..., np.ndarray],
) -> None:
    x = np.random.default_rng(0).random((3, 2, 9, 7), dtype=F32)
    held = {f"k{i}": value for i, value in enumerate(constants) if value is not None}
    names = [f"k{i}" if value is not None else "" for i, value in enumerate(constants)]
    data = ["x"]
    before = []
    if op == "Squeeze":
        before, data = [helper.make_node("Unsqueeze", ["x", "one"], ["u"])], ["u"]
        held["one"] = ints(1)
        names = ["one"]
    if op in ("Log", "Reciprocal", "ReduceLogSum", "ReduceProd"):
        before, data = [helper.make_node("Add", ["x", "half"], ["u"])], ["u"]
        held["half"] = np.array(0.5, F32)
    if op == "Concat":
        data = ["x", "x"]
    if op in ("DepthToSpace", "SpaceToDepth"):
        before, data = [helper.make_node("Pad", ["x", *(["wide"] if opset > 10 else [])], ["u"])], ["u"]
        held["wide"] = ints(0, 0, 0, 0, 0, 6, 0, 2)
    if op == "GatherND":  # the last axes of which come first
        before, data, names = [helper.make_node("Transpose", ["x"], ["u"], perm=[2, 3, 0, 1])], ["u"], ["places"]
        held["places"] = np.array([[1, 2], [-1, 0]], I64)
    if op == "Where":
        data = ["mask", "x"]
        held["mask"] = noise(9, 7) > 0
    outputs = ["t", "other"] if op == "Split" else ["t"]
    nodes = [*before, helper.make_node(op, [*data, *names], outputs, **attributes)]
    if op == "Split":
        axis = attributes["axis"]
        nodes.append(helper.make_node("Concat", ["other", "t"], ["joined"], axis=axis))
    if op == "GatherND":
        nodes.append(helper.make_node("Transpose", ["t"], ["joined"], perm=[1, 2, 0]))
    if op == "Expand" and len(constants[0]) == 5:  # type: ignore[arg-type]
        nodes.append(helper.make_node("Transpose", ["t"], ["joined"], perm=[1, 0, 2, 3, 4]))
    if nodes[-1].output[0] == "joined":
        nodes.append(helper.make_node("Identity", ["joined"], ["t2"]))
    result = "t2" if nodes[-1].output[0] == "t2" else "t"
    inner = run_reference(
        make_graph(
            [*nodes, helper.make_node("Identity", [result], ["y"])], held, shape=("N", 2, 9, 7), out=None, opset=opset
        ),
        x,
    )
    held["w"] = noise(math.prod(inner.shape[1:]), 3)
    nodes += [helper.make_node("Flatten", [result], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    model = make_graph(nodes, held, shape=("N", 2, 9, 7), opset=opset)
    loaded = load_model(*submit(model, input_shape=[2, 9, 7]))
    with torch.no_grad():
        ours = loaded.model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, run_reference(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("attributes", "mask"),
    [
        ({}, None),
        ({"scale": 0.3}, noise(9, 9)),
        ({"is_causal": 1}, None),
        ({}, np.tri(9, 9) > 0),
        ({"q_num_heads": 2, "kv_num_heads": 2}, None),
    ],
)
@pytest.mark.parametrize("opset", [23, 24])
def test_attention_agrees_with_onnxruntime(
    attributes: dict[str, Any],
    mask: np.ndarray | None,
    opset: int,
    make_graph: Callable[..., Any],
    submit: Callable[..., Any],
    run_reference: Callable[..., np.ndarray],
) -> None:
    held = {f"m{i}": noise(6, 6) + 0 * i for i in range(3)} | {"w": noise(2 * 9 * 6, 3), "flat": ints(0, 9, 12)}
    nodes = [helper.make_node("MatMul", ["x", f"m{i}"], [f"p{i}"]) for i in range(3)]
    inputs = [f"p{i}" for i in range(3)]
    if "q_num_heads" in attributes:
        nodes += [helper.make_node("Reshape", [f"p{i}", "flat"], [f"f{i}"]) for i in range(3)]
        inputs = [f"f{i}" for i in range(3)]
    if mask is not None:
        held["mask"] = mask
        inputs.append("mask")
    nodes.append(helper.make_node("Attention", inputs, ["a"], **attributes))
    nodes += [helper.make_node("Flatten", ["a"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    used = {name for node in nodes for name in node.input}
    model = make_graph(nodes, {k: v for k, v in held.items() if k in used}, shape=("N", 2, 9, 6), opset=opset)
    model.ir_version = 10
    x = np.random.default_rng(1).random((3, 2, 9, 6), dtype=F32)
    ours = load_model(*submit(model, input_shape=[2, 9, 6])).model(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(ours, run_reference(model, x), rtol=1e-4, atol=1e-5)


def test_a_convolution_along_a_line_agrees_with_onnxruntime(
    make_graph: Callable[..., Any], submit: Callable[..., Any], run_reference: Callable[..., np.ndarray]
) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "line"], ["l"]),
        helper.make_node("Conv", ["l", "cw", "cb"], ["c"], pads=[1, 2], strides=[2]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    held = {"line": ints(0, 2, 32), "cw": noise(4, 2, 3), "cb": noise(4), "w": noise(4 * 17, 3)}
    model = make_graph(nodes, held)
    x = np.random.default_rng(1).random((3, 1, 8, 8), dtype=F32)
    loaded = load_model(*submit(model))
    np.testing.assert_allclose(
        loaded.model(torch.from_numpy(x)).detach(), run_reference(model, x), rtol=1e-4, atol=1e-5
    )


def test_bounds_let_gradients_through_between_them_and_none_beyond(
    make_graph: Callable[..., Any], submit: Callable[..., Any]
) -> None:
    held = {"low": np.array(0.2, F32), "high": np.array(0.7, F32), "w": noise(4, 3)}
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["t"]), helper.make_node("Flatten", ["t"], ["f"])]
    nodes.append(helper.make_node("MatMul", ["f", "w"], ["y"]))
    model = make_graph(nodes, held, shape=("N", 1, 2, 2), opset=13)
    x = torch.tensor([0.1, 0.4, 0.6, 0.9]).view(1, 1, 2, 2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(load_model(*submit(model, input_shape=[1, 2, 2])).model(x)[0, 0], x)
    torch.testing.assert_close(
        gradient.flatten(), torch.tensor([0.0, 1.0, 1.0, 0.0]) * torch.from_numpy(held["w"][:, 0])
    )


@pytest.mark.parametrize(
    ("op", "attributes", "constants", "opset"), ON_CONSTANTS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_computes_constants_agrees_with_onnxruntime(
    op: str,
    attributes: dict[str, Any],
    constants: list[np.ndarray],
    opset: int,
    make_graph: Callable[..., Any],
    submit: Callable[..., Any],
    run_reference: Callable[..., np.ndarray],
) -> None:
    held = {f"k{i}": value for i, value in enumerate(constants)} | {"w": noise(126, 3)}
    nodes = [
        helper.make_node(op, [f"k{i}" for i in range(len(constants))], ["t"], **attributes),
        helper.make_node("Cast", ["t"], ["number"], to=1),
        helper.make_node("Add", ["x", "number"], ["a"]),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    model = make_graph(nodes, held, shape=("N", 2, 9, 7), opset=opset)
    x = np.random.default_rng(0).random((3, 2, 9, 7), dtype=F32)
    loaded = load_model(*submit(model, input_shape=[2, 9, 7]))
    with torch.no_grad():
        ours = loaded.model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, run_reference(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", sorted(name for name, operator in OPERATORS.items() if operator.on_constants))
def test_what_decides_rounds_or_counts_takes_no_activations(
    op: str, make_graph: Callable[..., Any], submit: Callable[..., Any]
) -> None:
    count = max(1, OPERATORS[op].inputs[0])
    nodes = [
        helper.make_node(op, ["x", *(["half"] * (count - 1))], ["t"]),
        helper.make_node("Cast", ["t"], ["number"], to=1),
        helper.make_node("Flatten", ["number"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    held = {"w": noise(64, 3)} | ({"half": np.array(0.5, F32)} if count > 1 else {})
    with pytest.raises(NotUnderstood):
        load_model(*submit(make_graph(nodes, held)))


def test_every_operator_of_the_table_is_built_and_tested() -> None:
    built = set(BUILDERS) | set(ELEMENTWISE) | {"Constant"} | (set(RULES) - {"Resize"})
    whole = {"QuantizeLinear", "DequantizeLinear"}
    composed = {"Attention", "RMSNormalization", "Swish"}
    folded = {name for name, operator in OPERATORS.items() if operator.on_constants}
    assert folded <= set(FOLDS) and not folded & set(BUILDERS)
    assert built | whole | folded | composed | {"Split", "Sum"} == set(OPERATORS)
    elsewhere = {"Constant", "Gemm", "Shape", "Attention", *whole}
    assert {case[0] for case in CASES + ON_CONSTANTS} | elsewhere == set(OPERATORS)


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_a_batch_size_computed_from_the_input_is_followed(
    opset: int, make_graph: Callable[..., Any], submit: Callable[..., Any], run_reference: Callable[..., np.ndarray]
) -> None:
    # the way the older torch exporter writes x.view(x.size(0), -1)
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, I64))),
        node("Gather", ["s", "zero"], ["b"], axis=0),
        node("Constant", [], ["axis"], value=numpy_helper.from_array(ints(0))),
        node("Unsqueeze", ["b", "axis"], ["b1"]),
        node("Constant", [], ["rest"], value_ints=[-1]),
        node("Concat", ["b1", "rest"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["f"]),
        node("Gemm", ["f", "w", "b0"], ["y"]),
    ]
    model = make_graph(nodes, {"w": noise(64, 3), "b0": noise(1, 3)}, opset=opset)
    loaded = load_model(*submit(model))
    x = np.random.default_rng(1).random((5, 1, 8, 8), dtype=F32)
    np.testing.assert_allclose(
        loaded.model(torch.from_numpy(x)).detach(), run_reference(model, x), rtol=1e-4, atol=1e-5
    )


def test_a_batch_size_of_one_baked_in_on_export_is_freed(
    make_graph: Callable[..., Any], submit: Callable[..., Any], run_reference: Callable[..., np.ndarray]
) -> None:
    node = helper.make_node
    nodes = [node("Reshape", ["x", "to"], ["f"]), node("MatMul", ["f", "w"], ["m"]), node("Add", ["b", "m"], ["y"])]
    held = {"to": ints(1, 64), "w": noise(64, 3), "b": noise(3)}
    model = make_graph(nodes, held, shape=(1, 1, 8, 8), out=(1, 3))
    loaded = load_model(*submit(model))
    x = np.random.default_rng(1).random((4, 1, 8, 8), dtype=F32)
    alone = np.concatenate([run_reference(model, x[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(loaded.model(torch.from_numpy(x)).detach(), alone, rtol=1e-4, atol=1e-5)


def test_a_reshape_that_fixes_a_free_batch_is_refused(
    make_graph: Callable[..., Any], submit: Callable[..., Any]
) -> None:
    nodes = [helper.make_node("Reshape", ["x", "to"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    with pytest.raises(NotUnderstood, match="batch"):
        load_model(*submit(make_graph(nodes, {"to": ints(1, 64), "w": noise(64, 3)})))


def test_logits_that_depend_on_the_other_images_are_refused(
    make_graph: Callable[..., Any], submit: Callable[..., Any]
) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Flatten", ["d"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    with pytest.raises(NotUnderstood, match="each image of a batch alone"):
        load_model(*submit(make_graph(nodes, {"w": noise(64, 3)})))


N = helper.make_node
SHAPE = [N("Shape", ["x"], ["s"]), N("Gather", ["s", "nought"], ["b"], axis=0)]
# each gives "m" something that depends on the other images or on how many there are; the zero hides it from every run
MIXERS = {
    "the mean over the batch": [N("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1)],
    "the mean of what no image shows": [
        N("Sub", ["x", "two32"], ["far"]),
        N("Relu", ["far"], ["off"]),
        N("ReduceMean", ["off"], ["m"], axes=[0], keepdims=1),
    ],
    "a softmax over the batch": [N("Softmax", ["x"], ["m"], axis=-4)],
    "the image before": [N("Pad", ["x", "shift"], ["m"])],
    "the first image": [N("Slice", ["x", "o", "i", "o"], ["m"])],
    "one image for all": [N("Gather", ["x", "nought"], ["g"], axis=0), N("Unsqueeze", ["g", "o"], ["m"])],
    "the batch turned": [N("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]), N("GlobalMaxPool", ["t"], ["m"])],
    "the batch joined": [N("Concat", ["x", "x"], ["c"], axis=0), N("GlobalMaxPool", ["c"], ["m"])],
    "the batch folded": [N("Flatten", ["x"], ["q"], axis=0), N("ReduceMax", ["q"], ["m"], axes=[1])],
    "the number of images": [*SHAPE, N("Cast", ["b"], ["m"], to=1)],
    "the number of images, computed": [*SHAPE, N("Mul", ["b", "two"], ["d"]), N("Cast", ["d"], ["m"], to=1)],
    "the number of images as a size": [
        *SHAPE,
        N("Unsqueeze", ["b", "o"], ["b1"]),
        N("Concat", ["minus", "b1"], ["to"], axis=0),
        N("Reshape", ["x", "to"], ["r"]),
        N("ReduceMax", ["r"], ["m"], axes=[1]),
    ],
}


@pytest.mark.parametrize("what", sorted(MIXERS))
def test_nothing_may_see_across_the_batch_even_unnoticed(
    what: str, make_graph: Callable[..., Any], submit: Callable[..., Any]
) -> None:
    nodes = [
        *MIXERS[what],
        N("Mul", ["m", "hidden"], ["z"]),
        N("Add", ["x", "z"], ["a"]),
        N("Flatten", ["a"], ["f"]),
        N("MatMul", ["f", "w"], ["y"]),
    ]
    held = {"w": noise(64, 3), "hidden": np.array(0, F32), "o": ints(0), "i": ints(1), "nought": np.array(0, I64)}
    held |= {"two32": np.array(2, F32)}
    held |= {"two": np.array(2, I64), "shift": ints(1, 0, 0, 0, -1, 0, 0, 0), "minus": ints(-1)}
    used = {name for node in nodes for name in node.input}
    graph = make_graph(nodes, {name: value for name, value in held.items() if name in used})
    with pytest.raises(NotUnderstood, match=r"each image of a batch alone|for a batch of"):
        load_model(*submit(graph))


def test_a_node_named_like_the_softmax_does_not_take_its_place(
    cnn: Any, submit: Callable[..., Any], run_reference: Callable[..., np.ndarray]
) -> None:
    cnn.graph.node[-1].output[0] = "logits"
    cnn.graph.node[2].name = "y"
    cnn.graph.node.append(helper.make_node("Softmax", ["logits"], ["y"]))
    loaded = load_model(*submit(cnn))
    x = torch.rand(4, 1, 8, 8)
    np.testing.assert_allclose(loaded.model(x).softmax(1).detach(), run_reference(cnn, x.numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_a_final_softmax_or_sigmoid_is_stripped_and_recorded(op: str, cnn: Any, submit: Callable[..., Any]) -> None:
    plain = load_model(*submit(cnn))
    cnn.graph.node[-1].output[0] = "logits"
    cnn.graph.node.append(
        helper.make_node(op, ["logits"], ["y"], "probabilities", **{"axis": 1} if "max" in op else {})
    )
    loaded = load_model(*submit(cnn))
    x = torch.rand(4, 1, 8, 8)
    assert loaded.softmax_stripped and not plain.softmax_stripped
    assert loaded.layer == plain.layer == "hidden_relu"
    torch.testing.assert_close(loaded.model(x), plain.model(x))


@pytest.mark.parametrize("axis", [0, 2, -3])
def test_a_final_softmax_over_another_axis_is_refused(axis: int, cnn: Any, submit: Callable[..., Any]) -> None:
    cnn.graph.node[-1].output[0] = "logits"
    cnn.graph.node.append(helper.make_node("Softmax", ["logits"], ["y"], axis=axis))
    with pytest.raises(NotUnderstood, match=r"expected an axis of 2|softmax over 3 classes"):
        load_model(*submit(cnn))


def test_a_graph_that_takes_channels_last_is_fed_channels_first(
    make_graph: Callable[..., Any], submit: Callable[..., Any], run_reference: Callable[..., np.ndarray]
) -> None:
    # the way tf2onnx writes a Keras model
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["t"], "to_nchw", perm=[0, 3, 1, 2]),
        node("Conv", ["t", "cw"], ["c"], "seq/conv2d/Conv2D", auto_pad="SAME_UPPER"),
        node("Add", ["c", "cb"], ["a"], "seq/conv2d/BiasAdd"),
        node("Relu", ["a"], ["r"], "seq/relu"),
        node("Transpose", ["r"], ["back"], perm=[0, 2, 3, 1]),
        node("Reshape", ["back", "to"], ["f"]),
        node("MatMul", ["f", "w"], ["m"], "seq/dense/MatMul"),
        node("Add", ["m", "b"], ["logits"], "seq/dense/BiasAdd"),
        node("Softmax", ["logits"], ["y"]),
    ]
    held = {"cw": noise(4, 3, 3, 3), "cb": noise(1, 4, 1, 1), "to": ints(-1, 168), "w": noise(168, 3), "b": noise(3)}
    model = make_graph(nodes, held, shape=("N", 6, 7, 3))
    loaded = load_model(*submit(model, input_shape=[3, 6, 7]))
    x = torch.rand(4, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    theirs = run_reference(model, x.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(loaded.model(x).softmax(1).detach(), theirs, rtol=1e-4, atol=1e-5)
    assert isinstance(loaded.model.get_submodule("seq_dense_MatMul"), torch.nn.Linear)
    assert loaded.model.get_submodule("seq_dense_MatMul").bias is not None

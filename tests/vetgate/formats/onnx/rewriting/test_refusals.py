"""What runtimes compute in different ways is refused, what is only unusual is written in the one usual way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, helper

from tests.written import check_equal
from vetgate.errors import NotUnderstood
from vetgate.formats.readers import format_of

N, F32, I64 = helper.make_node, np.float32, np.int64
Case = tuple[list[NodeProto], dict[str, np.ndarray]]
CHANNELS = 2


def noise(*shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) * 0.5).astype(F32)


def full(value: float) -> np.ndarray:
    return np.full(CHANNELS, value, F32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


def norm(mean: float, *, variance: float = 1.0, outputs: Sequence[str] = ("t",), epsilon: float = 1e-5) -> Case:
    held = {"s": full(1), "b": full(0), "m": full(mean), "v": full(variance)}
    return [N("BatchNormalization", ["c", "s", "b", "m", "v"], list(outputs), epsilon=epsilon)], held


def conv(bias: float, after: Case) -> Case:
    nodes, held = after
    return [N("Conv", ["x", "cw", "cb"], ["c"]), *nodes], {"cw": noise(CHANNELS, 2, 3, 3), "cb": full(bias), **held}


def plain(op: str, constants: Sequence[np.ndarray] = (), **attributes: Any) -> Case:
    held = {f"k{i}": value for i, value in enumerate(constants)}
    return [N(op, ["x", *held], ["t"], **attributes)], held


def minus(value: float) -> Case:
    return [N("Sub", ["c", "m"], ["t"])], {"m": np.full((CHANNELS, 1, 1), value, F32)}


NONE = "to leave something of every image"
ONE_FIFTH: Case = (
    [
        N("Div", ["one", "five"], ["d"]),
        N("Mul", ["d", "seven"], ["m"]),
        N("Cast", ["m"], ["factor"], to=1),
        N("Mul", ["x", "factor"], ["t"]),
    ],
    {"one": ints(1), "five": ints(5), "seven": ints(7)},
)
COARSE = 2.0**25
SQUARE = {"kernel_shape": [3, 3]}
REFUSED: dict[str, tuple[Case, int, str]] = {
    "a bias that the mean takes away": (conv(COARSE, norm(COARSE)), 17, "size of what its weights"),
    "a bias that a difference takes away": (conv(COARSE, minus(COARSE)), 17, "size of what its weights"),
    "a whole one that is divided": (ONE_FIFTH, 17, "no whole 1 that is divided"),
    "a factor of a matrix product that is next to nothing": (
        (
            [N("Flatten", ["x"], ["rows"]), N("Gemm", ["rows", "many"], ["t"], alpha=1e-38)],
            {"many": noise(126, 126)},
        ),
        17,
        "alpha of 1e-15",
    ),
    "a norm of one large number": (
        (
            [N("Add", ["x", "large"], ["same"]), N("InstanceNormalization", ["same", "s", "b"], ["t"])],
            {"large": np.array([1957, -3523], F32).reshape(2, 1, 1), "s": full(1), "b": full(0)},
        ),
        17,
        "numbers of -1000 to 1000",
    ),
    "a norm of what hardly varies": (
        (
            [
                N("Mul", ["x", "little"], ["m"]),
                N("Add", ["m", "one"], ["same"]),
                N("InstanceNormalization", ["same", "s", "b"], ["t"]),
            ],
            {"little": np.array(0.01, F32), "one": np.array(1, F32), "s": full(1e4), "b": full(0)},
        ),
        17,
        "numbers that vary with the image",
    ),
    "a largest number that is never the image's": (
        plain("Max", [np.array([1.35, -3], F32).reshape(2, 1, 1)]),
        17,
        NONE,
    ),
    "a smallest number that is never the image's": (plain("Min", [np.array(-0.1, F32)]), 17, NONE),
    "bounds beyond every image": (plain("Clip", [np.array(2, F32), np.array(3, F32)]), 17, NONE),
    "an exponent of zero": (plain("Pow", [np.array([2, 0], F32).reshape(2, 1, 1)]), 17, "exponents of 0.01"),
    "a cut that leaves few images whole and many not": (
        plain("Slice", [ints(-6), ints(6), ints(0)]),
        17,
        "each image of a batch alone",
    ),
    "a matrix product of images": (plain("Gemm", [noise(4, 4)]), 17, "a row for each image"),
    "a large bias and nothing after it": (
        conv(COARSE, ([N("Relu", ["c"], ["t"])], {})),
        17,
        "size of what its weights",
    ),
    "a mean beyond every deviation": (conv(0, norm(COARSE)), 17, "size of what its weights"),
    "an offset that is taken away again": (
        ([N("Add", ["x", "m"], ["c"]), N("Sub", ["c", "m"], ["t"])], {"m": np.array(COARSE, F32)}),
        17,
        "size of what its weights",
    ),
    "two branches whose biases cancel": (
        (
            [N("Conv", ["x", "k", "p"], ["c"]), N("Conv", ["x", "k", "q"], ["d"]), N("Add", ["c", "d"], ["t"])],
            {"k": noise(2, 2, 1, 1), "p": full(3000), "q": full(-3000)},
        ),
        17,
        "size of what its weights",
    ),
    "statistics of a batch": (conv(0, norm(0, outputs=("t", "", ""))), 13, "expected one output"),
    "statistics of a batch by name": (conv(0, norm(0, outputs=("t", "one", "two", "three", "four"))), 13, "one output"),
    "ceil_mode 2": (plain("MaxPool", ceil_mode=2, **SQUARE), 17, "ceil_mode 0 or 1"),
    "ceil_mode -1": (plain("AveragePool", ceil_mode=-1, **SQUARE), 17, "ceil_mode 0 or 1"),
    "count_include_pad 2": (plain("AveragePool", count_include_pad=2, **SQUARE), 17, "count_include_pad 0 or 1"),
    "is_causal 3": (([N("Attention", ["x", "x", "x"], ["t"], is_causal=3)], {}), 23, "is_causal 0 or 1"),
    "keepdims 3": (plain("ReduceMax", axes=[1], keepdims=3), 13, "keepdims 0 or 1"),
    "storage order": (plain("MaxPool", storage_order=1, **SQUARE), 17, "storage_order 0"),
    "SAME beside a dilation": (
        plain("MaxPool", auto_pad="SAME_UPPER", dilations=[2, 2], **SQUARE),
        17,
        "explicit pads beside dilations",
    ),
    "SAME that cuts off": (
        plain("MaxPool", auto_pad="SAME_UPPER", kernel_shape=[1, 1], strides=[3, 3]),
        17,
        "explicit pads where strides pass",
    ),
    "padding as wide as the window": (plain("AveragePool", pads=[3, 0, 0, 0], **SQUARE), 17, "smaller than the window"),
    "a last window in the padding": (
        plain("MaxPool", kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
        17,
        "begin inside the image",
    ),
    "ceil_mode where padding counts": (
        plain("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0], ceil_mode=1, count_include_pad=1),
        17,
        "ceil_mode 0 where padding counts",
    ),
    "bounds that cross": (plain("Clip", [np.array(0.7, F32), np.array(0.2, F32)]), 17, "lower bound below"),
    "an even size": (plain("LRN", size=2), 17, "an odd size"),
    "a whole exponent of another type": (plain("Pow", [np.array(2, I64)]), 17, "float32 beside"),
    "an exponent that makes a step": (plain("Pow", [np.array(1e-30, F32)]), 17, "exponents of 0.01"),
    "a lone number that some take for zero": (plain("Mul", [np.array(1e-45, F32)]), 17, "every runtime keeps"),
    "an attribute without bounds": (plain("LeakyRelu", alpha=1e30), 17, "alpha of 1e-15 to 1e"),
    "a factor of zero": (plain("LRN", size=3, beta=0.0), 17, "alpha, beta and bias above zero"),
    "a diagonal of another type": (plain("Trilu", [np.array(1, F32)]), 17, "int64 beside"),
    "a choice of another type": (
        ([N("Where", ["m", "x", "k"], ["t"])], {"m": np.array([True]), "k": np.array(0, np.int32)}),
        17,
        "float32 beside",
    ),
    "an angle without bounds": (conv(0, ([N("Sin", ["c"], ["t"])], {})), 17, "numbers of -1000 to 1000"),
    "a mask at the end of float32": (
        ([N("Where", ["m", "x", "k"], ["t"])], {"m": np.array([True]), "k": np.array(3.4e38, F32)}),
        17,
        "numbers of at most 1e",
    ),
    "weights at the end of float32": (plain("Mul", [np.array(1e30, F32)]), 17, "weights at Mul node 't' that make"),
    "no epsilon": (plain("LayerNormalization", [noise(7)], epsilon=0.0), 17, "an epsilon of 1e-15 at least"),
    "no variance": (conv(0, norm(0, variance=0.0, epsilon=0.0)), 17, "a variance and epsilon of 1e-15"),
    "a division by what runtimes approximate": (
        ([N("Sigmoid", ["x"], ["d"]), N("Div", ["x", "d"], ["t"])], {}),
        17,
        "divisors other than zero",
    ),
    "a root of what may be negative": (
        ([N("Sub", ["x", "h"], ["d"]), N("Sqrt", ["d"], ["t"])], {"h": np.array(0.25, F32)}),
        17,
        "only numbers from zero on",
    ),
    "a fraction of a power of what may be negative": (
        ([N("Neg", ["x"], ["d"]), N("Pow", ["d", "h"], ["t"])], {"h": np.array(0.25, F32)}),
        17,
        "only numbers from zero on",
    ),
    "a division by what may be zero": (
        ([N("ReduceMean", ["x"], ["d"], axes=[1]), N("Div", ["x", "d"], ["t"])], {}),
        13,
        "divisors other than zero",
    ),
    "a logarithm of what may be zero": (plain("Log"), 17, "only numbers above zero"),
    "an inverse of what may be zero": (plain("Reciprocal"), 17, "only numbers other than zero"),
    "a power of zero that is none": (plain("Pow", [np.array(-1.0, F32)]), 17, "only numbers other than zero"),
    "a mirrored border cut off": (plain("Pad", [ints(0, 0, -1, 0, 0, 0, 1, 0)], mode="reflect"), 13, "negative widths"),
    "a softmax over the batch, before opset 13": (plain("Softmax", axis=0), 11, "each image of a batch alone"),
    "positions beyond the end": (plain("Gather", [ints(2)], axis=1), 13, "positions within 2"),
}
# written in another way, and the same
WRITTEN: dict[str, tuple[Case, int, list[str]]] = {
    "SAME padding": (plain("MaxPool", auto_pad="SAME_LOWER", strides=[2, 2], **SQUARE), 17, ["MaxPool"]),
    "SAME that leaves one out": (
        plain("Conv", [noise(2, 2, 1, 2)], auto_pad="SAME_LOWER", strides=[1, 4]),
        17,
        ["Conv"],
    ),
    "ceil_mode 1": (plain("MaxPool", strides=[2, 2], ceil_mode=1, **SQUARE), 17, ["MaxPool"]),
    "ceil_mode 1 with a mean": (plain("AveragePool", strides=[2, 2], ceil_mode=1, **SQUARE), 17, ["AveragePool"]),
    "ceil_mode 1, padded": (
        plain("AveragePool", kernel_shape=[3, 3], strides=[3, 2], pads=[1, 1, 1, 1], ceil_mode=1),
        17,
        ["AveragePool"],
    ),
    "a softmax over all axes": (plain("Softmax", axis=1), 11, ["Reshape", "Softmax", "Reshape"]),
    "a softmax over the last axis": (plain("Softmax", axis=3), 11, ["Softmax"]),
    "bounds as attributes": (plain("Clip", [np.array(0.2, F32)]), 13, ["Clip"]),
    "no bounds": (plain("Clip"), 13, []),
    "several extrema": (plain("Max", [np.array(0.2, F32), noise(2, 1, 1)]), 13, ["Max", "Max"]),
    "a range backwards": (plain("Slice", [ints(-1), ints(-9), ints(2), ints(-2)]), 13, ["Gather"]),
    "what does nothing": (
        (
            [
                *(N("Identity", ["x"], ["a"]), N("Dropout", ["a"], ["b"]), N("Cast", ["b"], ["c"], to=1)),
                *(N("Transpose", ["c"], ["d"], perm=[0, 2, 3, 1]), N("Transpose", ["d"], ["e"], perm=[0, 3, 1, 2])),
                *(N("Reshape", ["e", "k"], ["g"]), N("Slice", ["g", "z", "m"], ["t"])),
            ],
            {"k": ints(0, 2, 9, -1), "z": ints(0, 0), "m": ints(2**60, 2**60)},
        ),
        13,
        [],
    ),
    "two transpositions": (
        (
            [N("Transpose", ["x"], ["d"], perm=[0, 2, 3, 1]), N("Transpose", ["d"], ["t"], perm=[0, 2, 1, 3])],
            {},
        ),
        13,
        ["Transpose"],
    ),
    "constants computed": (
        (
            [
                *(N("Mul", ["p", "p"], ["q"]), N("Reshape", ["q", "k"], ["r"]), N("Transpose", ["r"], ["u"])),
                N("Add", ["x", "u"], ["t"]),
            ],
            {"p": noise(14), "k": ints(7, 1, 2)},
        ),
        13,
        ["Add"],
    ),
    "rows repeated for every image": (
        (
            [
                *(N("Shape", ["x"], ["s"]), N("Gather", ["s", "z"], ["n"]), N("Unsqueeze", ["n", "zz"], ["n1"])),
                *(N("Concat", ["n1", "rest"], ["to"], axis=0), N("Expand", ["token", "to"], ["many"])),
                N("Concat", ["many", "x"], ["t"], axis=1),
            ],
            {
                **{"z": np.array(0, I64), "zz": ints(0), "rest": ints(3, 9, 7)},
                "token": noise(1, 3, 9, 7),
            },
        ),
        13,
        ["Pad", "Add"],
    ),
    "numbers too small for some": (plain("Add", [np.full((2, 1, 1), 1e-40, F32)]), 13, ["Add"]),
}


def equal(made: bytes, described: Any, data: bytes, submission: Any) -> None:
    check_equal(made, described, members={submission.model: data}, described=submission)


@pytest.fixture
def submitted(make_graph: Callable[..., Any], submit: Callable[..., Any]) -> Callable[..., Any]:
    """A case with a linear layer at its end, as a submission of images (2, 9, 7)."""

    def make(case: Case, opset: int) -> Any:
        nodes, held = case
        width = 2 * 9 * 7
        last = nodes[-1].output[0]
        end = [N("Flatten", [last], ["f"]), N("Gemm", ["f", "w"], ["y"])]
        model = make_graph([*nodes, *end], {**held, "w": noise(width, 3)}, shape=("N", 2, 9, 7), opset=opset)
        shapes = onnx.shape_inference.infer_shapes(model).graph.value_info
        found = next((v for v in shapes if v.name == "f"), None)
        if found is not None and (width := found.type.tensor_type.shape.dim[1].dim_value) != 126 and width:
            weight = next(t for t in model.graph.initializer if t.name == "w")
            weight.CopyFrom(onnx.numpy_helper.from_array(noise(width, 3), "w"))
        directory, submission = submit(model, input_shape=[2, 9, 7])
        return submission, (directory / "model.onnx").read_bytes()

    return make


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_runtimes_compute_in_different_ways_is_refused(what: str, submitted: Callable[..., Any]) -> None:
    case, opset, says = REFUSED[what]
    submission, data = submitted(case, opset)
    with pytest.raises(NotUnderstood, match=says):
        format_of(submission).canonical({"model.onnx": data}, submission)


@pytest.mark.parametrize("what", sorted(WRITTEN))
def test_what_is_unusual_is_written_in_the_usual_way(what: str, submitted: Callable[..., Any]) -> None:
    case, opset, ops = WRITTEN[what]
    submission, data = submitted(case, opset)
    described, made = format_of(submission).canonical({"model.onnx": data}, submission)
    equal(made, described, data, submission)
    assert format_of(described).canonical({"model.onnx": made}, described) == (described, made)
    assert [n.op_type for n in onnx.load_from_string(made).graph.node] == [*ops, "Flatten", "Gemm"]


@pytest.mark.parametrize("seed", range(3))
def test_ordinary_layers_with_a_dead_channel_stay_accepted(seed: int, submitted: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 2, 3, 3, generator=generator).numpy()
    # one whose weights have decayed to nothing, and whose bias the statistics took over
    weight[0] *= 1e-20
    held = {"cw": weight, "cb": np.array([0.5, 0.1], F32), "s": full(1), "b": full(0)}
    held |= {"m": np.array([0.5, 3.0], F32), "v": np.array([0, 2.0], F32)}
    nodes = [N("Conv", ["x", "cw", "cb"], ["c"]), *norm(0)[0]]
    submission, data = submitted((nodes, held), 17)
    described, made = format_of(submission).canonical({"model.onnx": data}, submission)
    equal(made, described, data, submission)

"""The operators that a submitted graph may use: default deny. What each one means in torch stands in `build`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

AttributeKind = Literal["float", "int", "text", "tensor", "floats", "ints"]
OPSETS = range(11, 24)
DOMAINS = ("", "ai.onnx")
ANY = 64


@dataclass(frozen=True)
class Attribute:
    """The kind of an attribute and the opset that dropped it."""

    kind: AttributeKind
    before: int = OPSETS.stop


@dataclass(frozen=True)
class Operator:
    """How many inputs an operator takes, which attributes it may carry, and the opset that introduced it.

    Of `outputs` only the first may be used: the others are masks, indices and running statistics.
    """

    inputs: tuple[int, int]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    outputs: int = 1
    since: int = OPSETS.start


_FLOAT, _INT, _TEXT, _INTS = Attribute("float"), Attribute("int"), Attribute("text"), Attribute("ints")
_WINDOW = {"auto_pad": _TEXT, "dilations": _INTS, "kernel_shape": _INTS, "pads": _INTS, "strides": _INTS}
_REDUCE = {"axes": Attribute("ints", before=18), "keepdims": _INT, "noop_with_empty_axes": _INT}
_UNARY, _BINARY = Operator((1, 1)), Operator((2, 2))

OPERATORS: dict[str, Operator] = {
    # maps with weights
    "Conv": Operator((2, 3), {**_WINDOW, "group": _INT}),
    "Gemm": Operator((2, 3), {"alpha": _FLOAT, "beta": _FLOAT, "transA": _INT, "transB": _INT}),
    "MatMul": _BINARY,
    "BatchNormalization": Operator((5, 5), {"epsilon": _FLOAT, "momentum": _FLOAT, "training_mode": _INT}, outputs=5),
    "PRelu": _BINARY,
    # arithmetic
    "Add": _BINARY,
    "Sub": _BINARY,
    "Mul": _BINARY,
    "Div": _BINARY,
    "Pow": _BINARY,
    "Max": Operator((1, ANY)),
    "Min": Operator((1, ANY)),
    "Abs": _UNARY,
    "Neg": _UNARY,
    "Exp": _UNARY,
    "Log": _UNARY,
    "Sqrt": _UNARY,
    "Erf": _UNARY,
    "Reciprocal": _UNARY,
    # activations
    "Relu": _UNARY,
    "LeakyRelu": Operator((1, 1), {"alpha": _FLOAT}),
    "Elu": Operator((1, 1), {"alpha": _FLOAT}),
    "Celu": Operator((1, 1), {"alpha": _FLOAT}, since=12),
    "Selu": Operator((1, 1), {"alpha": _FLOAT, "gamma": _FLOAT}),
    "Gelu": Operator((1, 1), {"approximate": _TEXT}, since=20),
    "Mish": Operator((1, 1), since=18),
    "Sigmoid": _UNARY,
    "Tanh": _UNARY,
    "Softplus": _UNARY,
    "Softsign": _UNARY,
    "HardSigmoid": Operator((1, 1), {"alpha": _FLOAT, "beta": _FLOAT}),
    "HardSwish": Operator((1, 1), since=14),
    "Clip": Operator((1, 3)),
    "Softmax": Operator((1, 1), {"axis": _INT}),
    "LogSoftmax": Operator((1, 1), {"axis": _INT}),
    # windows and reductions
    "MaxPool": Operator((1, 1), {**_WINDOW, "ceil_mode": _INT, "storage_order": _INT}, outputs=2),
    "AveragePool": Operator((1, 1), {**_WINDOW, "ceil_mode": _INT, "count_include_pad": _INT}),
    "GlobalAveragePool": _UNARY,
    "GlobalMaxPool": _UNARY,
    "LRN": Operator((1, 1), {"alpha": _FLOAT, "beta": _FLOAT, "bias": _FLOAT, "size": _INT}),
    "ReduceMean": Operator((1, 2), _REDUCE),
    "ReduceMax": Operator((1, 2), _REDUCE),
    "ReduceSum": Operator((1, 2), {**_REDUCE, "axes": Attribute("ints", before=13)}),
    # shapes
    "Identity": _UNARY,
    "Dropout": Operator((1, 3), {"ratio": Attribute("float", before=12), "seed": _INT}, outputs=2),
    "Cast": Operator((1, 1), {"to": _INT, "saturate": _INT}),
    "Flatten": Operator((1, 1), {"axis": _INT}),
    "Reshape": Operator((2, 2), {"allowzero": _INT}),
    "Transpose": Operator((1, 1), {"perm": _INTS}),
    "Squeeze": Operator((1, 2), {"axes": Attribute("ints", before=13)}),
    "Unsqueeze": Operator((1, 2), {"axes": Attribute("ints", before=13)}),
    "Concat": Operator((1, ANY), {"axis": _INT}),
    "Pad": Operator((2, 4), {"mode": _TEXT}),
    "Shape": Operator((1, 1), {"start": _INT, "end": _INT}),
    "Gather": Operator((2, 2), {"axis": _INT}),
    "Slice": Operator((3, 5)),
    "Constant": Operator(
        (0, 0),
        {
            "value": Attribute("tensor"),
            "value_float": _FLOAT,
            "value_floats": Attribute("floats"),
            "value_int": _INT,
            "value_ints": _INTS,
        },
    ),
}

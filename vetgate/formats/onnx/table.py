"""The operators that a submitted graph may use: default deny. What each one means in torch stands in `build`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

AttributeKind = Literal["float", "int", "text", "tensor", "floats", "ints"]
OPSETS = range(9, 27)
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

    Of `outputs` only the first may be used: the others are masks, indices and running statistics. An operator that is
    accepted `on_constants` only computes shapes and constants: of activations it would decide, round or wrap around,
    which has no gradient that shows what it does.
    """

    inputs: tuple[int, int]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    outputs: int = 1
    since: int = OPSETS.start
    on_constants: bool = False


_FLOAT, _INT, _TEXT, _INTS = Attribute("float"), Attribute("int"), Attribute("text"), Attribute("ints")
_WINDOW = {"auto_pad": _TEXT, "dilations": _INTS, "kernel_shape": _INTS, "pads": _INTS, "strides": _INTS}
_REDUCE = {"axes": Attribute("ints", before=18), "keepdims": _INT, "noop_with_empty_axes": _INT}
_RESIZE = {
    "coordinate_transformation_mode": _TEXT,
    "cubic_coeff_a": _FLOAT,
    "exclude_outside": _INT,
    "extrapolation_value": _FLOAT,
    "mode": _TEXT,
    "nearest_mode": _TEXT,
    "antialias": _INT,
    "axes": _INTS,
    "keep_aspect_ratio_policy": _TEXT,
}
_UNARY, _BINARY = Operator((1, 1)), Operator((2, 2))
_FOLDED_UNARY, _FOLDED_BINARY = Operator((1, 1), on_constants=True), Operator((2, 2), on_constants=True)

OPERATORS: dict[str, Operator] = {
    # maps with weights
    "Conv": Operator((2, 3), {**_WINDOW, "group": _INT}),
    "Gemm": Operator((2, 3), {"alpha": _FLOAT, "beta": _FLOAT, "transA": _INT, "transB": _INT}),
    "MatMul": _BINARY,
    "BatchNormalization": Operator((5, 5), {"epsilon": _FLOAT, "momentum": _FLOAT, "training_mode": _INT}, outputs=5),
    "PRelu": _BINARY,
    "ConvTranspose": Operator((2, 3), {**_WINDOW, "group": _INT, "output_padding": _INTS, "output_shape": _INTS}),
    "Einsum": Operator((1, ANY), {"equation": _TEXT}),
    "LayerNormalization": Operator((2, 3), {"axis": _INT, "epsilon": _FLOAT, "stash_type": _INT}, outputs=3, since=17),
    "InstanceNormalization": Operator((3, 3), {"epsilon": _FLOAT}),
    # before opset 21 its weights are one a group, which no runtime computes
    "GroupNormalization": Operator((3, 3), {"epsilon": _FLOAT, "num_groups": _INT, "stash_type": _INT}, since=21),
    "RMSNormalization": Operator((2, 2), {"axis": _INT, "epsilon": _FLOAT, "stash_type": _INT}, since=23),
    "Attention": Operator(
        (3, 7),
        {
            **dict.fromkeys(("is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode"), _INT),
            **dict.fromkeys(("softmax_precision", "left_window_size", "right_window_size"), _INT),
            **dict.fromkeys(("scale", "softcap"), _FLOAT),
        },
        outputs=4,
        since=23,
    ),
    # arithmetic
    "Add": _BINARY,
    "Sub": _BINARY,
    "Mul": _BINARY,
    "Div": _BINARY,
    "Pow": _BINARY,
    "Max": Operator((1, ANY)),
    "Min": Operator((1, ANY)),
    "Sum": Operator((1, ANY)),
    "Mean": Operator((1, ANY)),
    "Where": Operator((3, 3)),
    "Abs": _UNARY,
    "Neg": _UNARY,
    "Exp": _UNARY,
    "Log": _UNARY,
    "Sqrt": _UNARY,
    "Erf": _UNARY,
    "Reciprocal": _UNARY,
    "Sin": _UNARY,
    "Cos": _UNARY,
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
    "Swish": Operator((1, 1), {"alpha": _FLOAT}, since=24),
    "Clip": Operator((1, 3), {"min": Attribute("float", before=11), "max": Attribute("float", before=11)}),
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
    **{
        f"Reduce{name}": Operator((1, 2), _REDUCE)
        for name in ("Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
    },
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
    "Pad": Operator(
        (1, 4),
        {"mode": _TEXT, "pads": Attribute("ints", before=11), "value": Attribute("float", before=11)},
    ),
    "Shape": Operator((1, 1), {"start": _INT, "end": _INT}),
    "Gather": Operator((2, 2), {"axis": _INT}),
    "Slice": Operator((1, 5), {name: Attribute("ints", before=10) for name in ("axes", "starts", "ends")}),
    "Split": Operator((1, 2), {"axis": _INT, "split": Attribute("ints", before=13), "num_outputs": _INT}, outputs=ANY),
    "Expand": _BINARY,
    "Tile": _BINARY,
    "Resize": Operator((1, 4), _RESIZE, since=10),
    "Upsample": Operator((2, 2), {"mode": _TEXT}),
    "DepthToSpace": Operator((1, 1), {"blocksize": _INT, "mode": _TEXT}),
    "SpaceToDepth": Operator((1, 1), {"blocksize": _INT}),
    "GatherND": Operator((2, 2), {"batch_dims": _INT}),
    "Trilu": Operator((1, 2), {"upper": _INT}, since=14),
    "CastLike": Operator((2, 2), {"saturate": _INT}, since=15),
    # weights and activations in whole numbers, which are read as real ones
    "QuantizeLinear": Operator((2, 3), {"axis": _INT, "saturate": _INT, "block_size": _INT, "output_dtype": _INT}),
    "DequantizeLinear": Operator((2, 3), {"axis": _INT, "block_size": _INT, "output_dtype": _INT}),
    # shapes and constants only
    "Size": _FOLDED_UNARY,
    "ConstantOfShape": Operator((1, 1), {"value": Attribute("tensor")}, on_constants=True),
    "Range": Operator((3, 3), since=11, on_constants=True),
    "Mod": Operator((2, 2), {"fmod": _INT}, since=10, on_constants=True),
    "CumSum": Operator((2, 2), {"exclusive": _INT, "reverse": _INT}, since=11, on_constants=True),
    **dict.fromkeys(("Ceil", "Floor", "Round", "Sign", "Not"), _FOLDED_UNARY),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"), _FOLDED_BINARY),
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

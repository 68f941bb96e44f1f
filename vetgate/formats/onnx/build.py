"""What each operator of the table means in torch: a node and its constants in, a module out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vetgate.formats.onnx import shapes as onnx_shapes
from vetgate.formats.onnx import weights as onnx_weights
from vetgate.formats.onnx import windows as onnx_windows
from vetgate.formats.onnx.operands import Built, Operands, Pointwise
from vetgate.formats.onnx.operators import moves, norms, reductions
from vetgate.formats.onnx.operators.resize import resize

Builder = Callable[[Operands], Built]


def build(operands: Operands) -> Built:
    """The module of one node; raises NotUnderstood for what it cannot mean exactly."""
    name = operands.node.op
    if name in ELEMENTWISE:
        return Built(ELEMENTWISE[name](operands), (0,))
    if name not in BUILDERS:
        raise operands.refuse("constants and shapes as inputs", "activations, which it would steer")
    return BUILDERS[name](operands)


class CoercedSoftmax(nn.Module):
    """Softmax as it was before opset 13: over all axes from `axis` on."""

    def __init__(self, axis: int, log: bool) -> None:
        super().__init__()
        self.axis, self.log = axis, log

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        flat = x.flatten(self.axis) if self.axis else x.flatten()
        out = flat.log_softmax(-1) if self.log else flat.softmax(-1)
        return out.reshape(x.shape)


def _clip(o: Operands) -> Built:
    low, high = o.number(1, -math.inf), o.number(2, math.inf)
    if -math.inf < low < high < math.inf:
        # the same values, at a third of what the gradient of a clamp costs
        return Built(nn.Hardtanh(low, high), (0,))
    return Built(Pointwise(lambda x: x.clamp(low, high)), (0,))


def _dropout(o: Operands) -> Built:
    if o.given(2) and bool(o.constant(2).any()):
        raise o.refuse("inference mode", "training_mode true")
    ratio = o.real("ratio", 0.5) if o.opset < 12 else o.number(1, 0.5)
    if not 0 <= ratio < 1:
        raise o.refuse("a ratio in [0, 1)", str(ratio))
    return Built(nn.Dropout(ratio), (0,))


def _softmax(o: Operands) -> nn.Module:
    log = o.node.op == "LogSoftmax"
    if o.opset < 13:
        return CoercedSoftmax(o.integer("axis", 1), log)
    axis = o.integer("axis", -1)
    return nn.LogSoftmax(axis) if log else nn.Softmax(axis)


def _gelu(o: Operands) -> nn.Module:
    kind = o.text("approximate", "none")
    if kind not in ("none", "tanh"):
        raise o.refuse("approximate none or tanh", kind)
    return nn.GELU(kind)


def _hard_sigmoid(o: Operands) -> nn.Module:
    slope, shift = o.real("alpha", 0.2), o.real("beta", 0.5)
    return Pointwise(lambda x: (slope * x + shift).clamp(0, 1))


def _selu(o: Operands) -> nn.Module:
    alpha, gamma = o.real("alpha", 1.67326319217681884765625), o.real("gamma", 1.05070102214813232421875)
    return Pointwise(lambda x: gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0))))


ELEMENTWISE: dict[str, Callable[[Operands], nn.Module]] = {
    "Identity": lambda o: nn.Identity(),
    "Relu": lambda o: nn.ReLU(),
    "LeakyRelu": lambda o: nn.LeakyReLU(o.real("alpha", 0.01)),
    "Elu": lambda o: nn.ELU(o.real("alpha", 1.0)),
    "Celu": lambda o: nn.CELU(o.real("alpha", 1.0)),
    "Selu": _selu,
    "Gelu": _gelu,
    "Mish": lambda o: nn.Mish(),
    "Sigmoid": lambda o: nn.Sigmoid(),
    "Tanh": lambda o: nn.Tanh(),
    "Softplus": lambda o: nn.Softplus(),
    "Softsign": lambda o: nn.Softsign(),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda o: nn.Hardswish(),
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Abs": lambda o: Pointwise(torch.abs),
    "Neg": lambda o: Pointwise(torch.neg),
    "Exp": lambda o: Pointwise(torch.exp),
    "Log": lambda o: Pointwise(torch.log),
    "Sqrt": lambda o: Pointwise(torch.sqrt),
    "Sin": lambda o: Pointwise(torch.sin),
    "Cos": lambda o: Pointwise(torch.cos),
    "Erf": lambda o: Pointwise(torch.erf),
    "Reciprocal": lambda o: Pointwise(torch.reciprocal),
    "GlobalAveragePool": lambda o: nn.AdaptiveAvgPool2d(1),
    "GlobalMaxPool": lambda o: nn.AdaptiveMaxPool2d(1),
    "Flatten": lambda o: nn.Flatten() if o.integer("axis", 1) == 1 else onnx_shapes.Flatten(o.integer("axis", 1)),
}


BUILDERS: dict[str, Builder] = {
    "Conv": onnx_windows.conv,
    "Gemm": onnx_weights.gemm,
    "MatMul": onnx_weights.matmul,
    "BatchNormalization": onnx_weights.batch_norm,
    "PRelu": onnx_weights.prelu,
    **{name: onnx_weights.arithmetic for name in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min")},
    "Clip": _clip,
    "MaxPool": onnx_windows.max_pool,
    "AveragePool": onnx_windows.average_pool,
    "LRN": onnx_windows.lrn,
    **dict.fromkeys(reductions.FUNCTIONS, reductions.reduction),
    "ConvTranspose": onnx_windows.transposed_conv,
    "LayerNormalization": norms.layer_norm,
    "InstanceNormalization": norms.instance_norm,
    "GroupNormalization": norms.group_norm,
    "Einsum": moves.einsum,
    "Where": moves.where,
    "Expand": moves.expand,
    "Tile": moves.tile,
    "GatherND": moves.gather_nd,
    "Trilu": moves.triangle,
    "DepthToSpace": moves.depth_to_space,
    "SpaceToDepth": moves.space_to_depth,
    "Resize": resize,
    "Dropout": _dropout,
    "Cast": onnx_shapes.cast,
    "Reshape": onnx_shapes.reshape,
    "Transpose": onnx_shapes.transpose,
    "Squeeze": onnx_shapes.squeeze,
    "Unsqueeze": onnx_shapes.unsqueeze,
    "Concat": onnx_shapes.concat,
    "Pad": onnx_shapes.pad,
    "Shape": onnx_shapes.shape,
    "Gather": onnx_shapes.gather,
    "Slice": onnx_shapes.cut,
}

"""An ONNX file in the making: nodes, constants, and for each value the shape that Keras gives it.

Maps of height, width and channels, which Keras orders so, are (N, C, H, W) in the file; all else is as in Keras.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 9
CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class Value:
    """What a node gives, by name; `shape` is that of Keras, without the batch: (H, W, C) for a map."""

    name: str
    shape: tuple[int, ...]

    @property
    def is_map(self) -> bool:
        return len(self.shape) == 3


class Network:
    """Collects nodes. The last node of a layer is called like the layer."""

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        channels, height, width = input_shape
        self.image = Value("image", (height, width, channels))
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> Value:
        """A new node with these inputs, whose output has this shape in Keras."""
        name = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return Value(name, shape)

    def held(self, array: np.ndarray | list[int]) -> str:
        """The name of a new constant: float32, or int64 for a list."""
        kind = np.int64 if isinstance(array, list) else np.float32
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array, kind), name))
        return name

    def spread(self, numbers: np.ndarray, x: Value) -> str:
        """A constant with one number, or one a channel, that goes with a value; the last axis of Keras is channels."""
        return self.held(numbers.reshape(-1, 1, 1) if x.is_map and numbers.size > 1 else numbers.reshape(-1))

    def keras_order(self, x: Value) -> Value:
        """The value with its axes in the order of Keras."""
        if not x.is_map or math.prod(x.shape[:2]) == 1 or x.shape[2] == 1:
            return x if not x.is_map else self.node("Reshape", [x.name, self.held([0, *x.shape])], x.shape)
        return self.node("Transpose", [x.name], x.shape, perm=CHANNELS_LAST)

    def in_order(self, name: str, shape: tuple[int, ...]) -> Value:
        """The value with this name, whose axes are in the order of Keras, as the others are held here."""
        return self.node("Transpose", [name], shape, perm=CHANNELS_FIRST) if len(shape) == 3 else Value(name, shape)

    def call_last(self, name: str) -> None:
        """Name the last node like the layer that it ends."""
        self.nodes[-1].name = name

    def to_bytes(self, outputs: Iterable[Value]) -> bytes:
        """The file with these outputs."""
        height, width, channels = self.image.shape
        graph = helper.make_graph(
            self.nodes,
            "keras",
            [helper.make_tensor_value_info(self.image.name, TensorProto.FLOAT, ["N", channels, height, width])],
            [helper.make_tensor_value_info(each.name, TensorProto.FLOAT, ["N", *each.shape]) for each in outputs],
            self.constants,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="keras")
        data: bytes = model.SerializeToString()
        return data

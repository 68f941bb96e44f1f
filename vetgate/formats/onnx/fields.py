"""The fields that an ONNX file may have, message by message, and why the others are refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """A field that a message may have: a wire kind, and the message it holds where it holds one."""

    kind: str  # int, float, text, bytes, floats, doubles, ints, or the name of a message
    many: bool = False


def _many(kind: str) -> Field:
    return Field(kind, many=True)


TABLE: dict[str, dict[int, tuple[str, Field]]] = {
    "Model": {
        1: ("ir_version", Field("int")),
        2: ("producer_name", Field("text")),
        3: ("producer_version", Field("text")),
        4: ("domain", Field("text")),
        5: ("model_version", Field("int")),
        6: ("doc_string", Field("text")),
        7: ("graph", Field("Graph")),
        8: ("opset_import", _many("OperatorSet")),
        14: ("metadata_props", _many("Pair")),
    },
    "OperatorSet": {1: ("domain", Field("text")), 2: ("version", Field("int"))},
    "Pair": {1: ("key", Field("text")), 2: ("value", Field("text"))},
    "Graph": {
        1: ("node", _many("Node")),
        2: ("name", Field("text")),
        5: ("initializer", _many("Tensor")),
        10: ("doc_string", Field("text")),
        11: ("input", _many("ValueInfo")),
        12: ("output", _many("ValueInfo")),
        13: ("value_info", _many("ValueInfo")),
        16: ("metadata_props", _many("Pair")),
    },
    "Node": {
        1: ("input", _many("text")),
        2: ("output", _many("text")),
        3: ("name", Field("text")),
        4: ("op_type", Field("text")),
        5: ("attribute", _many("Attribute")),
        6: ("doc_string", Field("text")),
        7: ("domain", Field("text")),
        8: ("overload", Field("text")),
        9: ("metadata_props", _many("Pair")),
    },
    "Attribute": {
        1: ("name", Field("text")),
        2: ("f", Field("float")),
        3: ("i", Field("int")),
        4: ("s", Field("bytes")),
        5: ("t", Field("Tensor")),
        7: ("floats", _many("floats")),
        8: ("ints", _many("ints")),
        9: ("strings", _many("bytes")),
        13: ("doc_string", Field("text")),
        20: ("type", Field("int")),
    },
    "Tensor": {
        1: ("dims", _many("ints")),
        2: ("data_type", Field("int")),
        4: ("float_data", _many("floats")),
        5: ("int32_data", _many("ints")),
        7: ("int64_data", _many("ints")),
        8: ("name", Field("text")),
        9: ("raw_data", Field("bytes")),
        10: ("double_data", _many("doubles")),
        12: ("doc_string", Field("text")),
        13: ("external_data", _many("Pair")),
        14: ("data_location", Field("int")),
        16: ("metadata_props", _many("Pair")),
    },
    "ValueInfo": {
        1: ("name", Field("text")),
        2: ("type", Field("Type")),
        3: ("doc_string", Field("text")),
        4: ("metadata_props", _many("Pair")),
    },
    "Type": {1: ("tensor_type", Field("TensorType")), 6: ("denotation", Field("text"))},
    "TensorType": {1: ("elem_type", Field("int")), 2: ("shape", Field("Shape"))},
    "Shape": {1: ("dim", _many("Dimension"))},
    "Dimension": {1: ("dim_value", Field("int")), 2: ("dim_param", Field("text")), 3: ("denotation", Field("text"))},
}

# fields of the format that are refused, with the reason people need
REFUSED: dict[tuple[str, int], str] = {
    ("Model", 20): "a training graph; export for inference",
    ("Model", 25): "functions; inline them (onnx.inliner.inline_local_functions)",
    ("Model", 26): "device placement; export without it",
    ("Graph", 14): "quantisation annotations; hand in the float32 model",
    ("Graph", 15): "sparse initializers; store the weights densely",
    ("Node", 10): "device placement; export without it",
    ("Attribute", 6): "control flow (a subgraph); export a graph without If, Loop and Scan",
    ("Attribute", 10): "a list of tensors as attribute",
    ("Attribute", 11): "control flow (subgraphs); export a graph without If, Loop and Scan",
    ("Attribute", 14): "a type as attribute",
    ("Attribute", 15): "a list of types as attribute",
    ("Attribute", 21): "an attribute reference, which only functions have; inline the functions",
    ("Attribute", 22): "a sparse tensor; store it densely",
    ("Attribute", 23): "sparse tensors; store them densely",
    ("Tensor", 3): "a tensor segment; store each tensor whole",
    ("Tensor", 6): "a tensor of strings",
    ("Tensor", 11): "a tensor of unsigned 64-bit numbers; convert it to int64",
    ("Type", 4): "a sequence",
    ("Type", 5): "a map",
    ("Type", 7): "an opaque type",
    ("Type", 8): "a sparse tensor",
    ("Type", 9): "an optional value",
}

"""Operators of newer opsets as the older ones that they are made of: attention, RMS normalisation, Swish.

Source    The function bodies in ONNX's operator specifications, opsets 23 to 25.
Deviates  The factor of attention is applied to the queries alone, one for each feature; masked places get
          -1e30 and not minus infinity.
"""

from __future__ import annotations

import math

import numpy as np

from vetgate.formats.onnx.rewriting.walk import Rewrite

MASKED = np.float32(-1e30)
# operands and attributes of Attention that only text generation has
UNKNOWN = ("qk_matmul_output_mode", "softcap")
WINDOWS = ("left_window_size", "right_window_size")


def attention(r: Rewrite) -> str:
    """softmax(q k' * scale + mask) v for each head, of (B, heads, places, features) or (B, places, all features)."""
    if any(r.given(i) for i in (4, 5, 6)) or len(r.node.outputs) != 1:
        raise r.refuse("attention within an image", "keys and values of before, as text generation has them")
    if any(r.node.attributes.get(name, 0) for name in UNKNOWN) or any(r.integer(name, -1) != -1 for name in WINDOWS):
        raise r.refuse("attention without softcap or windows", str(dict(r.node.attributes)))
    flat = r.rank == 3
    heads = [r.integer("q_num_heads", 0), *[r.integer("kv_num_heads", 0)] * 2]
    names = [_by_head(r, i, heads[i]) if flat else r.name(i) for i in range(3)]
    shapes = [r.walk.shapes[name][0] for name in names]
    if any(len(shape) != 4 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise r.refuse("as many heads of keys and values as of queries", str(shapes))
    places, others, features = shapes[0][2], shapes[1][2], shapes[0][3]
    scale = r.node.attributes.get("scale", 1 / math.sqrt(features))
    # a number for each feature: onnxruntime loses a value that it takes two lone factors out of
    queries = r.write("Mul", [names[0], r.hold(np.full(features, scale, np.float32))])
    turned = r.transposed(names[1], (0, 1, 3, 2))
    scores = r.write("MatMul", [queries, turned])
    if (mask := _mask(r, places, others)) is not None:
        scores = r.write("Add", [scores, r.hold(mask)])
    weights = r.write("Softmax", [scores], {"axis": 3})
    last = r.result
    made = r.write("MatMul", [weights, names[2]], output="" if flat else last)
    if not flat:
        return made
    together = r.write("Transpose", [made], {"perm": (0, 2, 1, 3)})
    width = shapes[2][1] * shapes[2][3]
    return r.write("Reshape", [together, r.hold(np.array([-1, places, width], np.int64))], output=last)


def _by_head(r: Rewrite, index: int, heads: int) -> str:
    _, places, width = r.shapes(index)[0]
    if heads < 1 or width % heads:
        raise r.refuse(f"heads that divide {width} features", str(heads))
    apart = r.hold(np.array([-1, places, heads, width // heads], np.int64))
    return r.write("Transpose", [r.write("Reshape", [r.name(index), apart])], {"perm": (0, 2, 1, 3)})


def _mask(r: Rewrite, places: int, others: int) -> np.ndarray | None:
    given = r.constant(3)
    if given is not None and given.dtype == np.bool_:
        given = np.where(given, np.float32(0), MASKED).astype(np.float32)
    if given is not None and (given.dtype != np.float32 or given.ndim > 4):
        raise r.refuse("a mask of truth values or float32 numbers", f"{given.dtype} of shape {given.shape}")
    if not r.integer("is_causal", 0):
        return given
    before = np.where(np.tri(places, others, dtype=np.bool_), np.float32(0), MASKED).astype(np.float32)
    return before if given is None else np.maximum(np.float32(given + before), MASKED)


def rms_norm(r: Rewrite) -> str:
    """x / sqrt(mean(x ** 2) + epsilon) * scale over the axes from `axis` on."""
    axes = np.arange(r.axis(-1), r.rank)
    count = math.prod(r.shapes()[0][int(axes[0]) :])
    squares = r.write("ReduceSumSquare", [r.name(0), r.hold(axes)], {"keepdims": 1})
    mean = r.write("Mul", [squares, r.hold(np.array(1 / count, np.float32))])
    held = r.write("Add", [mean, r.hold(np.array(r.real("epsilon", 1e-5), np.float32))])
    divided = r.write("Div", [r.name(0), r.write("Sqrt", [held])])
    return r.write("Mul", [divided, r.name(1)], output=r.result)


def swish(r: Rewrite) -> str:
    """x * sigmoid(alpha * x)."""
    alpha, source = r.real("alpha", 1.0), r.name(0)
    inner = source if alpha == 1 else r.write("Mul", [source, r.hold(np.array(alpha, np.float32))])
    return r.write("Mul", [source, r.write("Sigmoid", [inner])], output=r.result)

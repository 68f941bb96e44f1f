"""How each operator is written in opset 21: defaults spelled out, padding and axes settled, what does nothing left out.

What is disputed between runtimes is refused here: flags that are neither 0 nor 1, outputs that only training has,
padding that some runtimes count from the dilated kernel and some do not, bounds that cross.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vetgate.formats.onnx.nodes import SMALLEST, Node, Value, check_factors
from vetgate.formats.onnx.rewriting import composed
from vetgate.formats.onnx.rewriting.fold import cuts, parts, refuse
from vetgate.formats.onnx.rewriting.sizes import line
from vetgate.formats.onnx.rewriting.walk import BATCHES, Rewrite, Shape, Walk

# nothing happens in these, or what happens is undone by reading everything as float32
WIDE = (1, 10, 11, 16)
FLAGS = (
    *("transA", "transB", "keepdims", "noop_with_empty_axes", "ceil_mode", "count_include_pad", "storage_order"),
    *(
        "allowzero",
        "training_mode",
        "fmod",
        "saturate",
        "exclude_outside",
        "antialias",
        "upper",
        "exclusive",
        "reverse",
        "is_causal",
    ),
)
# what a node means that says nothing else
DEFAULTS: dict[str, dict[str, Value]] = {
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "Celu": {"alpha": 1.0},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "Gelu": {"approximate": "none"},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "DepthToSpace": {"mode": "DCR"},
    "Trilu": {"upper": 1},
    "GatherND": {"batch_dims": 0},
}
# their constants hold a value for each axis of the image from the right, so one row stands for the whole batch
COUNTED = ("Trilu", "Tile", "GatherND")
BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Where", "MatMul", "Equal", "Less", "Greater")
# a batch that nobody runs
MANY = 10**6
Rule = Callable[[Rewrite], str]


def rewrite(walk: Walk, node: Node, opset: int, *, folded: bool) -> None:
    """Check a node, and unless it is folded write it into the walk; raises NotUnderstood."""
    for flag in FLAGS:
        if node.attributes.get(flag, 0) not in (0, 1):
            raise refuse(node, f"{flag} 0 or 1", str(node.attributes[flag]))
    check_factors(node)
    if folded:
        return
    given = Rewrite(walk, node, opset)
    if node.op in ("Split",):
        _split(given)
        return
    name = RULES.get(node.op, _plain)(given)
    if name != node.outputs[0]:
        walk.aliases[node.outputs[0]] = walk.root(name)


def _last(r: Rewrite) -> str:
    return r.node.outputs[0]


def _power(r: Rewrite) -> str:
    exponent = r.constant(1)
    size = np.abs(np.zeros(0) if exponent is None else exponent)
    if bool(((size < 0.01) | (size > 100)).any()):
        raise r.refuse("exponents of 0.01 to 100", "others, which make one number, or a step, of what is near one")
    return _plain(r)


def _lrn(r: Rewrite) -> str:
    factors = {name: r.real(name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))}
    if any(value <= 0 for value in factors.values()):
        raise r.refuse("alpha, beta and bias above zero", str(factors))
    return r.write("LRN", [r.name(0)], {**factors, "size": r.integer("size", 0)}, output=_last(r))


def _plain(r: Rewrite) -> str:
    attributes = {**DEFAULTS.get(r.node.op, {}), **r.node.attributes}
    rows = r.node.op in BROADCAST
    inputs = [
        (r.name(i) if rows or r.walk.root(name) not in r.walk.numbers else _refused(r, i)) if name else ""
        for i, name in enumerate(r.node.inputs)
    ]
    for index, name in enumerate(inputs):
        # a mask is of truth values, a count of whole numbers
        kind = np.bool_ if (r.node.op, index) == ("Where", 0) else np.int64 if r.node.op in COUNTED else np.float32
        if name in r.walk.constants and r.walk.constants[name].dtype != kind:
            raise r.refuse(
                f"{np.dtype(kind)} beside what the image gives, as input {index}", str(r.walk.constants[name].dtype)
            )
    return r.write(r.node.op, inputs, attributes, output=_last(r))


def _gemm(r: Rewrite) -> str:
    if r.rank != 2:
        raise r.refuse("a row for each image", f"values of {r.rank} axes")
    return _plain(r)


def _refused(r: Rewrite, index: int) -> str:
    raise r.refuse("no number that depends on the batch size", f"one as input {index}")


def _same(r: Rewrite) -> str:
    return r.name(0)


def _dropout(r: Rewrite) -> str:
    training = r.constant(2)
    if training is not None and bool(training.any()):
        raise r.refuse("inference mode", "training_mode true")
    return r.name(0)


def _cast(r: Rewrite) -> str:
    if r.integer("to", 0) not in WIDE:
        raise r.refuse("no rounding of what the image gives", f"a cast to ONNX data type {r.integer('to', 0)}")
    return r.name(0)


def _chain(op: str) -> Rule:
    def write(r: Rewrite) -> str:
        names = [r.name(i) for i in range(len(r.node.inputs))]
        if any(not name for name in r.node.inputs):
            raise r.refuse("every input", "one left out")
        kinds = {str(r.walk.constants[name].dtype) for name in names if name in r.walk.constants}
        if kinds - {"float32"}:
            raise r.refuse("float32 beside what the image gives", " and ".join(sorted(kinds)))
        # constants last: two of them in a row would be an operator on constants alone
        names.sort(key=lambda name: name in r.walk.constants)
        result = names[0]
        for place, name in enumerate(names[1:], start=2):
            result = r.write(op, [result, name], output=_last(r) if place == len(names) else "")
        return result

    return write


def _batch_norm(r: Rewrite) -> str:
    if len(r.node.outputs) != 1:
        raise r.refuse("one output", f"{len(r.node.outputs)}, which only training has")
    if r.integer("training_mode", 0):
        raise r.refuse("inference mode", "training_mode 1")
    epsilon, variance = r.real("epsilon", 1e-5), r.constant(4)
    if variance is None or not variance.size or float(variance.min()) + epsilon < SMALLEST:
        raise r.refuse(f"a variance and epsilon of {SMALLEST:.0e} at least", "less, which is divided by")
    attributes: dict[str, Value] = {"epsilon": epsilon, "momentum": r.real("momentum", 0.9)}
    return r.write("BatchNormalization", [r.name(i) for i in range(5)], attributes, output=_last(r))


def _layer_norm(r: Rewrite) -> str:
    if len(r.node.outputs) != 1:
        raise r.refuse("one output", f"{len(r.node.outputs)}, which only training has")
    return r.write("LayerNormalization", _weights(r), {"axis": r.axis(-1), "epsilon": _epsilon(r)}, output=_last(r))


def _other_norm(r: Rewrite) -> str:
    attributes: dict[str, Value] = {"epsilon": _epsilon(r)}
    if r.node.op == "GroupNormalization":
        attributes["num_groups"] = r.integer("num_groups", 0)
    return r.write(r.node.op, _weights(r), attributes, output=_last(r))


def _epsilon(r: Rewrite) -> float:
    # of an image of one colour nothing else is left to divide by
    epsilon = r.real("epsilon", 1e-5)
    if epsilon < SMALLEST:
        raise r.refuse(f"an epsilon of {SMALLEST:.0e} at least", f"{epsilon:.3g}")
    return epsilon


def _window(r: Rewrite, kernel: list[int]) -> dict[str, Value]:
    # kernel_shape, strides, dilations and pads, whatever of them the node leaves out
    shapes = r.shapes()
    count = len(kernel)
    if len(shapes[0]) != count + 2 or not count:
        raise r.refuse(f"images with {count} sides", f"shape {shapes[0]}")
    strides, dilations = r.integers("strides") or [1] * count, r.integers("dilations") or [1] * count
    pads, mode = r.integers("pads") or [0] * (2 * count), r.text("auto_pad", "NOTSET")
    if not len(strides) == len(dilations) == count or len(pads) != 2 * count:
        raise r.refuse("strides, dilations and pads for each side", f"{strides}, {dilations}, {pads}")
    if any(v < 1 for v in (*kernel, *strides, *dilations)) or any(p < 0 for p in pads):
        raise r.refuse("a window", f"kernel {kernel}, strides {strides}, dilations {dilations}, pads {pads}")
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER") or (mode != "NOTSET" and any(pads)):
        raise r.refuse("pads, or auto_pad", f"pads {pads}, auto_pad {mode}")
    if mode.startswith("SAME"):
        if any(d != 1 for d in dilations):
            raise r.refuse("explicit pads beside dilations", f"auto_pad {mode}, which runtimes count in two ways")
        pads = _same_pads(r, shapes[0][2:], kernel, strides, lower=mode == "SAME_LOWER")
    return {
        "kernel_shape": tuple(kernel),
        "strides": tuple(strides),
        "dilations": tuple(dilations),
        "pads": tuple(pads),
    }


def _same_pads(r: Rewrite, sizes: Shape, kernel: list[int], strides: list[int], *, lower: bool) -> list[int]:
    totals = [(math.ceil(size / s) - 1) * s + k - size for size, k, s in zip(sizes, kernel, strides, strict=True)]
    if min(totals) < -1:
        # onnxruntime takes this as a border to be cut off
        raise r.refuse("explicit pads where strides pass over what is left", f"sizes {sizes}, {kernel} by {strides}")
    totals = [max(total, 0) for total in totals]
    before = [(total + lower) // 2 for total in totals]
    return [*before, *(total - first for total, first in zip(totals, before, strict=True))]


def _conv(r: Rewrite) -> str:
    weight = r.constant(1)
    if weight is None or weight.ndim < 3:
        raise r.refuse("weights of a convolution", "others")
    kernel = list(weight.shape[2:])
    if r.integers("kernel_shape") not in (None, kernel):
        raise r.refuse("a kernel that fits the weights", f"{r.integers('kernel_shape')} beside {weight.shape}")
    attributes = {**_window(r, kernel), "group": r.integer("group", 1)}
    if weight.ndim == 3 and r.node.op == "Conv":
        return _conv_along_a_line(r, weight, attributes)
    if r.node.op == "ConvTranspose":
        if r.text("auto_pad", "NOTSET") != "NOTSET" or r.integers("output_shape") is not None:
            raise r.refuse("explicit pads and no output_shape", "others, which runtimes count in two ways")
        attributes["output_padding"] = tuple(r.integers("output_padding") or [0] * len(kernel))
    return r.write(r.node.op, _weights(r), attributes, output=_last(r))


def _conv_along_a_line(r: Rewrite, weight: np.ndarray, attributes: dict[str, Value]) -> str:
    # of one side, as of an image with a height of one
    both: dict[str, Value] = {"group": attributes["group"]}
    for key in ("kernel_shape", "strides", "dilations"):
        both[key] = (1, *_whole(attributes[key]))
    first, last = _whole(attributes["pads"])
    both["pads"] = (0, first, 0, last)
    height = r.hold(np.array([2], np.int64))
    image = r.write("Unsqueeze", [r.name(0), height])
    inputs = [image, r.hold(weight[:, :, None, :].copy()), *([r.name(2)] if r.given(2) else [])]
    made = r.write("Conv", inputs, both)
    return r.write("Squeeze", [made, r.hold(np.array([2], np.int64))], output=_last(r))


def _whole(value: Value) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, tuple) else ()


def _weights(r: Rewrite) -> list[str]:
    return [r.name(i) if r.given(i) else "" for i in range(len(r.node.inputs))]


def _resize(r: Rewrite) -> str:
    # of height and width only, by sizes or by scales
    mode = r.text("mode", "nearest")
    attributes: dict[str, Value] = {"mode": mode}
    attributes["coordinate_transformation_mode"] = r.text("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        attributes["nearest_mode"] = r.text("nearest_mode", "round_prefer_floor")
    if mode == "cubic":
        attributes["cubic_coeff_a"] = r.real("cubic_coeff_a", -0.75)
        attributes["exclude_outside"] = r.integer("exclude_outside", 0)
    if r.integer("antialias", 0) or r.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise r.refuse("no antialias, and sides that are stretched", "others")
    if r.integers("axes") not in (None, [2, 3], [-2, -1]) or r.rank != 4:
        raise r.refuse("other heights and widths", f"axes {r.integers('axes')}")
    place = 3 if r.given(3) else 2
    numbers = r.either(place)
    for value, shape in zip(numbers, r.shapes(), strict=True):
        kept = [1.0, 1.0] if place == 2 else list(shape[:2])
        if value.ndim != 1 or value.size not in (2, 4) or value[:-2].tolist() not in ([], kept):
            raise r.refuse("other heights and widths", f"{value.tolist()} for {shape}")
    if not np.array_equal(numbers[0][-2:], numbers[1][-2:]):
        raise r.refuse("sides that do not depend on the batch size", f"{numbers[0]} and {numbers[1]}")
    sides, old = numbers[0][-2:], np.array(r.shapes()[0][2:], np.float32)
    scales = sides.astype(np.float32) if place == 2 else sides.astype(np.float32) / old
    if place == 2 or bool((np.floor(old * scales) == sides).all()):
        # onnxruntime exchanges axes with what stands beside, and fails where only some of them are named
        held = np.concatenate([np.ones(2, np.float32), scales])
        return r.write("Resize", [r.name(0), "", r.hold(held)], attributes, output=_last(r))
    return r.write("Resize", [r.name(0), "", "", r.hold(sides)], {"axes": (2, 3), **attributes}, output=_last(r))


def _pool(r: Rewrite) -> str:
    op, average = r.node.op, r.node.op == "AveragePool"
    attributes = _window(r, r.integers("kernel_shape") or [])
    kernel, strides, dilations, pads = (
        [int(v) for v in attributes[key]]  # type: ignore[union-attr]
        for key in ("kernel_shape", "strides", "dilations", "pads")
    )
    if r.integer("storage_order", 0):
        raise r.refuse("storage_order 0", "1")
    count = r.integer("count_include_pad", 0)
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        raise r.refuse("padding smaller than the window", f"pads {pads}, kernel {kernel}")
    if average and any(d != 1 for d in dilations):
        raise r.refuse("no dilation", str(dilations))
    if r.integer("ceil_mode", 0):
        pads = _ceiled(r, kernel, strides, dilations, pads, may_count=average and bool(count))
    attributes["pads"] = tuple(pads)
    if average:
        del attributes["dilations"]
        attributes["count_include_pad"] = count if any(pads) else 0
    return r.write(op, [r.name(0)], attributes, output=_last(r))


def _ceiled(
    r: Rewrite, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int], *, may_count: bool
) -> list[int]:
    # windows that are cut at the border are those of the same operator with more padding after
    count, sizes = len(kernel), r.shapes()[0][2:]
    found = list(pads)
    for i in range(count):
        reach = (kernel[i] - 1) * dilations[i] + 1
        length = sizes[i] + pads[i] + pads[count + i]
        rest = (length - reach) % strides[i]
        if length < reach or not rest:
            continue
        more = strides[i] - rest
        begins = length + more - reach
        if begins >= sizes[i] + pads[i]:
            raise r.refuse("windows that begin inside the image", "one in the padding, which runtimes drop or keep")
        if may_count:
            raise r.refuse("ceil_mode 0 where padding counts", "1, which runtimes count in two ways")
        found[count + i] += more
        if found[count + i] >= kernel[i]:
            raise r.refuse("ceil_mode 0", f"1 with a last window that reaches {found[count + i]} beyond the image")
    return found


def _softmax(r: Rewrite) -> str:
    shapes = r.shapes()
    if r.opset >= 13:
        return r.write(r.node.op, [r.name(0)], {"axis": r.axis(-1)}, output=_last(r))
    axis = r.axis(1)
    if any(r.grows(place) for place in range(axis, r.rank)):
        raise r.refuse("to treat each image of a batch alone", "a softmax over all of them")
    rest = math.prod(shapes[0][axis:])
    if rest == shapes[0][axis]:
        return r.write(r.node.op, [r.name(0)], {"axis": axis}, output=_last(r))
    # before opset 13 it went over all axes from this one on
    flat = _growing(r, [(*shape[:axis], rest) for shape in shapes])
    made = r.write(r.node.op, [r.write("Reshape", [r.name(0), flat])], {"axis": axis})
    return r.write("Reshape", [made, _growing(r, list(shapes))], output=_last(r))


def _clip(r: Rewrite) -> str:
    # before opset 11 the bounds were attributes
    bounds: list[np.ndarray | None] = []
    for index, name in ((1, "min"), (2, "max")):
        named = r.node.attributes.get(name)
        value = np.array(named, np.float32) if isinstance(named, float) else r.constant(index)
        if value is not None and (value.size != 1 or value.dtype != np.float32 or bool(np.isnan(value).any())):
            raise r.refuse(f"one float32 number as {name}", f"{value.dtype} of shape {value.shape}")
        bounds.append(None if value is None else value.reshape(()))
    low, high = bounds
    low = None if low is None or low <= np.finfo(np.float32).min else low
    high = None if high is None or high >= np.finfo(np.float32).max else high
    if low is not None and high is not None and low > high:
        raise r.refuse("a lower bound below the upper one", f"{low} and {high}, which runtimes take in two ways")
    if low is None and high is None:
        return r.name(0)
    names = [r.hold(bound) if bound is not None else "" for bound in (low, high)]
    return r.write("Clip", [r.name(0), *names], output=_last(r))


def _axes(r: Rewrite, rank: int) -> tuple[int, ...]:
    named = r.integers("axes")
    value = r.constant(1) if named is None else None
    axes = named if named is not None else [] if value is None else [int(v) for v in value.reshape(-1)]
    if any(not -rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) != len(axes):
        raise r.refuse(f"different axes of {rank}", str(axes))
    return tuple(sorted(axis % rank for axis in axes))


def _held_axes(r: Rewrite, axes: tuple[int, ...]) -> str:
    return r.hold(np.array(axes, np.int64))


def _reduce(r: Rewrite) -> str:
    axes, keep = _axes(r, r.rank), r.integer("keepdims", 1)
    if not axes:
        if r.integer("noop_with_empty_axes", 0) and (r.given(1) or r.integers("axes") is not None or r.opset >= 18):
            return r.name(0)
        raise r.refuse("axes to reduce", "none, which mixes the images of a batch")
    return r.write(r.node.op, [r.name(0), _held_axes(r, axes)], {"keepdims": keep}, output=_last(r))


def _squeeze(r: Rewrite) -> str:
    axes = _axes(r, r.rank)
    if not axes:
        raise r.refuse("axes to squeeze", "none, which depends on the batch size")
    return r.write("Squeeze", [r.name(0), _held_axes(r, axes)], output=_last(r))


def _unsqueeze(r: Rewrite) -> str:
    named = r.integers("axes")
    count = len(named) if named is not None else 0 if (value := r.constant(1)) is None else value.size
    axes = _axes(r, r.rank + count)
    if not axes:
        raise r.refuse("axes", "none")
    return r.write("Unsqueeze", [r.name(0), _held_axes(r, axes)], output=_last(r))


def _reshape(r: Rewrite) -> str:
    keep_zero, shapes = r.integer("allowzero", 0), r.shapes()
    growing = [i for i in range(r.rank) if r.grows(i)]
    made: list[Shape] = []
    for target, shape, batch in zip(r.either(1), shapes, BATCHES, strict=True):
        if target.dtype != np.int64 or target.ndim != 1:
            raise r.refuse("a shape as a list of int64", f"{target.dtype} of shape {target.shape}")
        sizes = [int(v) for v in target]
        fixed = r.walk.batch if growing else None
        if fixed is not None:
            # as it is for the batch size that was fixed on export
            shape = tuple(size // batch * fixed if i in growing else size for i, size in enumerate(shape))
        if not keep_zero:
            sizes = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(sizes)]
        whole = _resolved(r, sizes, shape)
        made.append(whole if fixed is None else _freed(r, whole, math.prod(shape[: growing[0]]), fixed, batch))
    return _reshaped(r, made)


def _freed(r: Rewrite, sizes: Shape, before: int, fixed: int, batch: int) -> Shape:
    # one image after the other stays so: along the axis before which there is as much as there was
    for i, size in enumerate(sizes):
        if math.prod(sizes[:i]) == before and size % fixed == 0:
            return (*sizes[:i], size // fixed * batch, *sizes[i + 1 :])
    raise r.refuse(f"a shape that keeps the {fixed} images of a batch apart", str(sizes))


def _resolved(r: Rewrite, sizes: list[int], shape: Shape) -> Shape:
    total = math.prod(shape)
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise r.refuse("a shape with at most one -1", str(sizes))
    if -1 in sizes:
        rest = -math.prod(sizes)
        sizes[sizes.index(-1)] = total // rest if rest and total % rest == 0 else 0
    if math.prod(sizes) != total:
        raise r.refuse(f"a shape of {total} values for a batch of shape {shape}", str(sizes))
    return tuple(sizes)


def _reshaped(r: Rewrite, made: list[Shape]) -> str:
    # the same sizes for every batch but for one, which grows with it
    if made == list(r.shapes()):
        return r.name(0)
    return r.write("Reshape", [r.name(0), _growing(r, made)], output=_last(r))


def _growing(r: Rewrite, made: Sequence[Shape]) -> str:
    # the shape for any batch, held
    one, two = made
    moving = [i for i in range(len(one)) if len(one) == len(two) and one[i] != two[i]]
    if len(one) != len(two) or len(moving) != 1 or one[moving[0]] * BATCHES[1] != two[moving[0]] * BATCHES[0]:
        raise r.refuse("one size that grows with the batch", f"{one} and {two} for batches of {BATCHES}")
    return r.hold(np.array([-1 if i == moving[0] else size for i, size in enumerate(one)], np.int64))


def _flatten(r: Rewrite) -> str:
    axis = r.integer("axis", 1)
    if not -r.rank <= axis <= r.rank:
        raise r.refuse(f"an axis of {r.rank}", str(axis))
    axis = axis + r.rank if axis < 0 else axis
    if axis == 1 and r.rank > 2:
        return r.write("Flatten", [r.name(0)], {"axis": 1}, output=_last(r))
    return _reshaped(r, [(math.prod(shape[:axis]), math.prod(shape[axis:])) for shape in r.shapes()])


def _transpose(r: Rewrite) -> str:
    perm = r.integers("perm") or list(reversed(range(r.rank)))
    if sorted(perm) != list(range(r.rank)):
        raise r.refuse(f"an order of {r.rank} axes", str(perm))
    return r.transposed(r.name(0), perm, output=_last(r))


def _concat(r: Rewrite) -> str:
    if "axis" not in r.node.attributes:
        raise r.refuse("an axis", "none")
    roots = [r.walk.root(name) for name in r.node.inputs]
    live = [i for i, name in enumerate(roots) if name in r.walk.tensors]
    rank = len(r.shapes(live[0])[0])
    axis = r.integer("axis", 0)
    if not -rank <= axis < rank:
        raise r.refuse(f"an axis of {rank}", str(axis))
    axis %= rank
    if len(roots) == 1:
        return roots[0]
    if len(live) == len(roots):
        return r.write("Concat", roots, {"axis": axis}, output=_last(r))
    return _beside(r, roots, live, axis)


def _beside(r: Rewrite, roots: list[str], live: list[int], axis: int) -> str:
    # rows that are the same for every image, such as a class token, beside what the image gives: a border of zeros,
    # and then the rows are added
    shape = r.shapes(live[0])[0]
    if len(live) != 1 or r.shapes(live[0])[0][axis] != r.shapes(live[0])[1][axis]:
        raise r.refuse("one computed input beside constants", f"{len(live)}, along axis {axis}")
    rows: list[np.ndarray] = []
    for i, name in enumerate(roots):
        if i in live:
            rows.append(np.zeros((1, *shape[1:]), np.float32))
            continue
        row = r.row(i) if name in r.walk.numbers else r.walk.constants[name]
        if row.dtype != np.float32 or row.ndim != len(shape) or len(row) != 1:
            raise r.refuse("float32 rows that are the same for every image", f"{row.dtype} of shape {row.shape}")
        rows.append(row)
    added = np.concatenate(rows, axis)
    before = sum(row.shape[axis] for row in rows[: live[0]])
    after = added.shape[axis] - before - shape[axis]
    widths = [0] * (2 * len(shape))
    widths[axis], widths[len(shape) + axis] = before, after
    padded = r.write("Pad", [roots[live[0]], r.hold(np.array(widths, np.int64))], {"mode": "constant"})
    return r.write("Add", [padded, r.hold(added)], output=_last(r))


def _pad(r: Rewrite) -> str:
    rank, mode = r.rank, r.text("mode", "constant")
    named, value = r.integers("pads") or r.integers("paddings"), r.constant(2)
    pads = named if named is not None else [int(v) for v in (r.either(1)[0] if r.constant(1) is not None else ())]
    over = r.constant(3)
    axes = list(range(rank)) if over is None else [int(v) % rank for v in over.reshape(-1) if -rank <= v < rank]
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise r.refuse("two widths for each axis", f"{pads} for axes {axes}")
    widths = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        widths[axis], widths[rank + axis] = pads[i], pads[i + len(axes)]
    if not any(widths):
        return r.name(0)
    if mode != "constant" and any(width < 0 for width in widths):
        raise r.refuse("a border", f"{mode} with negative widths, which runtimes take in two ways")
    border = r.real("value", 0.0) if value is None else float(value.reshape(-1)[0]) if value.size == 1 else math.nan
    if not math.isfinite(border):
        raise r.refuse("a finite number around the image", "another")
    held = r.hold(np.array(border, np.float32)) if mode == "constant" and border else ""
    return r.write("Pad", [r.name(0), r.hold(np.array(widths, np.int64)), held], {"mode": mode}, output=_last(r))


def _gather(r: Rewrite) -> str:
    axis = r.axis(0)
    if r.grows(axis):
        return _gather_each(r, axis)
    size, index = r.shapes()[0][axis], r.constant(1)
    if index is None or index.dtype not in (np.int64, np.int32):
        raise r.refuse("constant positions", "others")
    if bool(((index < -size) | (index >= size)).any()):
        raise r.refuse(f"positions within {size}", str(index.reshape(-1)[:8].tolist()))
    held = r.hold(np.asarray(index.astype(np.int64) % size))
    return r.write("Gather", [r.name(0), held], {"axis": axis}, output=_last(r))


def _gather_each(r: Rewrite, axis: int) -> str:
    # positions among the values of all images in a row, where they are the same ones of each
    shapes, found = r.shapes(), []
    each = shapes[0][axis] // BATCHES[0]
    for index, batch in zip(r.either(1), BATCHES, strict=True):
        count = batch if r.walk.batch is None else r.walk.batch
        if index.dtype not in (np.int64, np.int32) or index.ndim < 2 or len(index) != count or axis:
            raise r.refuse("to treat each image of a batch alone", "positions along the batch")
        start = np.arange(count).reshape(-1, *[1] * (index.ndim - 1)) * each
        places = index.astype(np.int64) - start
        if bool((places != places[:1]).any() or (places < 0).any() or (places >= each).any()):
            raise r.refuse("to treat each image of a batch alone", "positions that lead to others")
        found.append(places[0])
    if not np.array_equal(found[0], found[1]):
        raise r.refuse("the same positions for each batch size", "others")
    apart = r.hold(np.array([-1, each, *shapes[0][1:]], np.int64))
    rows = r.write("Reshape", [r.name(0), apart])
    return r.write("Gather", [rows, r.hold(found[0])], {"axis": 1}, output=_last(r))


def _slice(r: Rewrite) -> str:
    taken: list[tuple[int, int, int, int]] = []
    # what leaves all of a few images may still leave some of many
    for batch in (*BATCHES, 1, MANY):
        sizes = tuple(int(size) for size in _at(batch, r.shapes()))
        named = [None, *(_at(batch, r.either(i)) if r.given(i) else None for i in range(1, 5))]
        found = sorted((axis, *cut) for axis, *cut in cuts(r.node, named, sizes) if tuple(cut) != (0, sizes[axis], 1))
        if any(r.grows(axis) for axis, *_ in found) or (batch != BATCHES[0] and found != taken):
            raise r.refuse("to treat each image of a batch alone", f"a cut that takes {found} of {batch} images")
        taken = found  # type: ignore[assignment]
    return _cut(r, taken)


def _at(batch: int, pair: Sequence[Any]) -> np.ndarray:
    # what numbers are for so many images
    start, slope = line((np.array(pair[0]), np.array(pair[1])), BATCHES)
    return np.asarray(start + batch * slope)


def _cut(r: Rewrite, taken: list[tuple[int, int, int, int]], *, output: str = "") -> str:
    if not taken:
        return r.name(0)
    shape = r.shapes()[0]
    if any(step < 1 or start >= end for _, start, end, step in taken):
        backwards = [c for c in taken if c[3] < 0]
        if len(backwards) != len(taken) or any(not len(range(*c[1:])) for c in taken):
            raise r.refuse("cuts that leave something", str(taken))
        # backwards: the same rows by their positions
        name = r.name(0)
        for place, (axis, start, end, step) in enumerate(backwards, start=1):
            rows = r.hold(np.array(range(start, end, step), np.int64))
            last = (output or _last(r)) if place == len(backwards) else ""
            name = r.write("Gather", [name, rows], {"axis": axis}, output=last)
        return name
    if any(end > shape[axis] for axis, _, end, _ in taken):
        raise r.refuse("a cut within the tensor", str(taken))
    columns = [r.hold(np.array(column, np.int64)) for column in zip(*taken, strict=True)]
    axes, starts, ends, steps = columns
    return r.write("Slice", [r.name(0), starts, ends, axes, steps], output=output or _last(r))


def _split(r: Rewrite) -> None:
    # every part is a cut of its own
    axis = r.axis(0)
    if r.grows(axis):
        raise r.refuse("to treat each image of a batch alone", "a split along the batch")
    size = r.shapes()[0][axis]
    begin = 0
    for output, length in zip(r.node.outputs, parts(r.node, [None, r.constant(1)], size), strict=True):
        if output:
            name = _cut(r, [(axis, begin, begin + length, 1)] if length != size else [], output=output)
            if name != output:
                r.walk.aliases[output] = r.walk.root(name)
        begin += length


def _expand(r: Rewrite) -> str:
    shapes, made = r.shapes(), []
    for shape, target in zip(shapes, r.either(1), strict=True):
        made.append(tuple(int(v) for v in np.broadcast_shapes(shape, tuple(int(v) for v in target))))
    if made == list(shapes):
        return r.name(0)
    fixed = [i for i in range(len(made[0])) if made[0][i] != made[1][i]]
    offset = len(made[0]) - len(shapes[0])
    if any(i < offset or made[0][i] != shapes[0][i - offset] for i in fixed):
        raise r.refuse("no row that is repeated with the batch", f"{shapes[0]} to {made[0]}")
    kept = [1 if i in fixed else size for i, size in enumerate(made[0])]
    return r.write("Expand", [r.name(0), r.hold(np.array(kept, np.int64))], output=_last(r))


def _prelu(r: Rewrite) -> str:
    return r.write("PRelu", [r.name(0), r.name(1)], output=_last(r))


RULES: dict[str, Rule] = {
    "Attention": composed.attention,
    "RMSNormalization": composed.rms_norm,
    "Swish": composed.swish,
    "Gemm": _gemm,
    "Identity": _same,
    "Dropout": _dropout,
    "Cast": _cast,
    **{name: _chain(name) for name in ("Max", "Min")},
    "Sum": _chain("Add"),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), _other_norm),
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Resize": _resize,
    "Pow": _power,
    "LRN": _lrn,
    "MaxPool": _pool,
    "AveragePool": _pool,
    **{name: _softmax for name in ("Softmax", "LogSoftmax")},
    "Clip": _clip,
    **{f"Reduce{name}": _reduce for name in ("Mean", "Max", "Sum", "Min", "Prod", "L1", "L2")},
    **{f"Reduce{name}": _reduce for name in ("SumSquare", "LogSum", "LogSumExp")},
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Concat": _concat,
    "Pad": _pad,
    "Gather": _gather,
    "Slice": _slice,
    "Expand": _expand,
    "PRelu": _prelu,
}

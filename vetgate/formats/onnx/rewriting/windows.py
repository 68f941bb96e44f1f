"""How windows over an image are written: convolutions, pools and images of another size, with their padding settled.

Refused is padding that some runtimes count from the dilated kernel and some do not, or that they drop or keep.
"""

from __future__ import annotations

import math

import numpy as np

from vetgate.formats.onnx.nodes import Value
from vetgate.formats.onnx.rewriting.walk import Rewrite, Shape


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


def conv(r: Rewrite) -> str:
    """A convolution, or a transposed one, with its window spelled out; along a line as of an image of one row."""
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
    return r.write(r.node.op, r.names(), attributes, output=r.result)


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
    return r.write("Squeeze", [made, r.hold(np.array([2], np.int64))], output=r.result)


def _whole(value: Value) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, tuple) else ()


def resize(r: Rewrite) -> str:
    """Other heights and widths, by scales or by sizes."""
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
        return r.write("Resize", [r.name(0), "", r.hold(held)], attributes, output=r.result)
    return r.write("Resize", [r.name(0), "", "", r.hold(sides)], {"axes": (2, 3), **attributes}, output=r.result)


def pool(r: Rewrite) -> str:
    """A pool over windows, ceil_mode written as padding."""
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
    return r.write(op, [r.name(0)], attributes, output=r.result)


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

"""Images resized by the rules of ONNX: each pixel a fixed sum of old ones along the height, then along the width.

Source    The Resize operator of ONNX, whose coordinate transformations and filters are followed literally.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vetgate.formats.onnx.operands import Built, Operands

MAX_SIDE = 4096
# (position, scale, new size, old size) -> place in the old image
PLACES: dict[str, Callable[[np.ndarray, np.float32, int, int], np.ndarray]] = {
    "half_pixel": lambda i, scale, new, old: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, new, old: (i + 0.5) / scale - 0.5 if new > 1 else 0.0 * i,
    "half_pixel_symmetric": lambda i, scale, new, old: old / 2 * (1 - new / (scale * old)) + (i + 0.5) / scale - 0.5,
    "align_corners": lambda i, scale, new, old: i * (old - 1) / (new - 1) if new > 1 else 0.0 * i,
    "asymmetric": lambda i, scale, new, old: i / scale,
}
NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


class Resize(nn.Module):
    """(B, C, H, W) to other heights and widths, by their sizes or by scales of all axes."""

    def __init__(
        self,
        filters: Callable[[int, int, float], np.ndarray],
        sizes: tuple[int, ...] | None,
        scales: tuple[float, ...] | None,
    ) -> None:
        super().__init__()
        self.filters, self.sizes, self.scales = filters, sizes, scales
        self.made: dict[tuple[int, int, float], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The resized images."""
        old = x.shape[2:]
        if self.scales is not None:
            scales = self.scales[-2:]
            new = [int(np.floor(np.float32(size) * np.float32(scale))) for size, scale in zip(old, scales, strict=True)]
        else:
            new = list(self.sizes or ())
            scales = (new[0] / old[0], new[1] / old[1])
        if not all(1 <= size <= MAX_SIDE for size in new):
            raise ValueError(f"expected sides of 1 to {MAX_SIDE}, got {new}")
        if new[0] != old[0] or scales[0] != 1:
            x = torch.einsum("bchw,oh->bcow", x, self._filter(new[0], old[0], scales[0]).to(x))
        if new[1] != old[1] or scales[1] != 1:
            x = torch.einsum("bchw,ow->bcho", x, self._filter(new[1], old[1], scales[1]).to(x))
        return x

    def _filter(self, new: int, old: int, scale: float) -> Tensor:
        if (new, old, scale) not in self.made:
            self.made[new, old, scale] = torch.from_numpy(self.filters(new, old, scale).astype(np.float32))
        return self.made[new, old, scale]


def resize(o: Operands) -> Built:
    mode, place = o.text("mode", "nearest"), o.text("coordinate_transformation_mode", "half_pixel")
    rounding, cubic = o.text("nearest_mode", "round_prefer_floor"), o.real("cubic_coeff_a", -0.75)
    known = mode in ("nearest", "linear", "cubic") and place in PLACES and rounding in NEAREST
    if not known or o.integer("antialias", 0) or o.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise o.refuse("nearest, linear or cubic interpolation without antialias", f"{mode}, {place}, {rounding}")
    outside = bool(o.integer("exclude_outside", 0))

    def filters(new: int, old: int, scale: float) -> np.ndarray:
        # in float32, as runtimes do: where two old pixels are equally near, the last bit decides
        where = np.asarray(PLACES[place](np.arange(new, dtype=np.float32), np.float32(scale), new, old), np.float32)
        if mode == "nearest":
            return _taps(NEAREST[rounding](where)[:, None], np.ones((new, 1)), old)
        if mode == "linear":
            where = where.clip(0, old - 1)
        first = np.floor(where)
        part = (where - first)[:, None]
        if mode == "linear":
            return _taps(first[:, None] + [0, 1], np.hstack([1 - part, part]), old)
        taps = first[:, None] + [-1, 0, 1, 2]
        weights = _cubic(np.abs(part - [-1, 0, 1, 2]), cubic)
        if outside:
            weights = np.where((taps >= 0) & (taps < old), weights, 0)
            weights = weights / weights.sum(1, keepdims=True)
        return _taps(taps, weights, old)

    if o.integers("axes") not in (None, [2, 3], [-2, -1]):
        raise o.refuse("other heights and widths", f"axes {o.integers('axes')}")
    if o.given(3):
        sizes = tuple(o.whole(3))
        if len(sizes) != 2 or o.integers("axes") is None:
            raise o.refuse("sizes of height and width, as axes says", str(sizes))
        return Built(Resize(filters, sizes, None), (0,))
    scales = tuple(float(v) for v in o.weight(2, rank=1)) if o.given(2) else ()
    if (
        len(scales) not in (2, 4)
        or any(scale != 1 for scale in scales[:-2])
        or not all(0 < v < MAX_SIDE for v in scales)
    ):
        raise o.refuse("scales of height and width", str(scales))
    return Built(Resize(filters, None, scales), (0,))


def _taps(taps: np.ndarray, weights: np.ndarray, old: int) -> np.ndarray:
    # (new, old): beyond the border the nearest pixel counts
    matrix = np.zeros((len(taps), old))
    for column in range(taps.shape[1]):
        np.add.at(matrix, (np.arange(len(taps)), taps[:, column].clip(0, old - 1).astype(int)), weights[:, column])
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

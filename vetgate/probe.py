"""Features, logits, hooks and robust statistics: the only helpers that methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vetgate.errors import DefenceError, NotFinite

# 1.4826 makes the MAD a consistent estimate of sigma for normal data
MAD_TO_SIGMA = 1.4826
# pixels of the images in one pass, and images at least, so that large ones take little memory
PIXELS, FEWEST = 2**18, 8


def images_at_once(x: Tensor, most: int) -> int:
    """How many of images x (N, C, H, W) go into one pass: `most`, or fewer where they are large."""
    return max(min(FEWEST, most), min(most, PIXELS // max(1, x[0, 0].numel())))


def module_at(model: nn.Module, layer: str) -> nn.Module:
    """The submodule called `layer`; raises DefenceError naming the nearest ones that exist."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in modules:
        near = ", ".join([n for n in modules if n][-5:])
        raise DefenceError(f"expected a layer of the model, got {layer!r}; the last ones are {near}")
    return modules[layer]


@contextmanager
def output_of(module: nn.Module, sink: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand the module's every output to `sink` while the context lasts."""
    handle = module.register_forward_hook(lambda _m, _i, out: sink(out))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits(model: nn.Module, x: Tensor, *, batch: int = 256) -> Tensor:
    """Logits (N, K) of images (N, C, H, W); raises NotFinite when the model gives NaN or infinity."""
    batch = images_at_once(x, batch)
    out = torch.cat([model(x[i : i + batch]) for i in range(0, len(x), batch)])
    if not bool(torch.isfinite(out).all()):
        raise NotFinite("the model gives NaN or infinite logits on clean images, expected finite ones; refuse it")
    return out


@torch.no_grad()
def features(model: nn.Module, layer: str, x: Tensor, *, batch: int = 256) -> Tensor:
    """Flattened outputs (N, D) of `layer` on images (N, C, H, W); of its last call, where a forward calls it twice."""
    seen: list[Tensor] = []
    kept: list[Tensor] = []
    batch = images_at_once(x, batch)
    with output_of(module_at(model, layer), lambda out: seen.append(out.detach().flatten(1).clone())):
        for i in range(0, len(x), batch):
            model(x[i : i + batch])
            kept.append(seen[-1])
            seen.clear()
    out = torch.cat(kept)
    if not bool(torch.isfinite(out).all()):
        raise NotFinite(f"layer {layer} gives NaN or infinite features, expected finite ones; refuse the model")
    return out


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images (N, C, H, W) whose largest logit is their label (N,)."""
    return float((logits(model, x).argmax(1) == y).float().mean())


def median(values: Tensor) -> float:
    """Median that averages the middle two; torch.median returns the lower one, which shifts even counts."""
    return float(values.double().quantile(0.5))


def mad(values: Tensor) -> float:
    """Median absolute deviation, scaled to estimate sigma for normal data."""
    return MAD_TO_SIGMA * median((values.double() - median(values)).abs())


def in_units_of_others(feats: Tensor, y: Tensor, classes: int, *, ridge: float, fewest: int = 10) -> dict[int, Tensor]:
    """Per class, its centred rows (n, D) float64 of features (N, D), whitened by how the other classes spread.

    Along every direction the unit is the mean within-class deviation of the other classes; `ridge`, in mean variances,
    keeps directions in which nothing varies from growing. Classes of fewer than `fewest` rows are left out.
    """
    feats = _reduced(feats.double())
    rows = {k: feats[y == k] - feats[y == k].mean(0) for k in range(classes) if int((y == k).sum()) >= fewest}
    if len(rows) < 2:
        raise DefenceError(f"expected at least 2 classes of {fewest} rows or more, got {len(rows)}; give more samples")
    spreads = {k: r.T @ r / len(r) for k, r in rows.items()}
    total = torch.stack(list(spreads.values())).sum(0)
    out = {}
    for k, r in rows.items():
        size, axes = torch.linalg.eigh((total - spreads[k]) / (len(rows) - 1))
        floor = ridge * size.mean().clamp(min=1e-12)
        out[k] = r @ (axes / (size.clamp(min=0) + floor).sqrt())
    return out


def _reduced(feats: Tensor, dims: int = 256) -> Tensor:
    # an eigendecomposition a class is cubic in the width, and wide layers carry few directions
    if feats.shape[1] <= dims:
        return feats
    centred = feats - feats.mean(0)
    return centred @ torch.svd_lowrank(centred, q=dims, niter=2)[2]

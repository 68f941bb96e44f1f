"""A first run of a loaded model: promised shapes, finite numbers, and every image judged by itself.

A graph could behave while it is vetted in large batches and misbehave on single images in production. So no operator
may see across the batch: along one axis each value holds one image after the other, whatever the batch size, and no
number computed from a shape may enter the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.module import OnnxModule, Step
from vetgate.formats.onnx.operands import called
from vetgate.formats.onnx.operators.moves import GatherNd
from vetgate.formats.onnx.shapes import Concat, Gather, Pad, Reshape, Slice
from vetgate.formats.onnx.weights import Arithmetic
from vetgate.formats.onnx.windows import PaddedAvgPool2d, PaddedMaxPool2d
from vetgate.formats.submission import Submission
from vetgate.probe import module_at, output_of

MIXING = 1e-3
# logits that are smaller are near what some runtimes take for zero
SMALLEST = 1e-20
IMAGES_ONLY = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.LocalResponseNorm,
    PaddedMaxPool2d,
    PaddedAvgPool2d,
)


@torch.no_grad()
def probe(model: nn.Module, layer: str, submission: Submission) -> None:
    """Run zeros and noise through an eval-mode model; raises NotUnderstood naming what was expected."""
    shape, classes = submission.input_shape, submission.n_classes
    seen: list[Tensor] = []
    with output_of(module_at(model, layer), seen.append):
        out = _on_zeros(model, shape, classes)
    if tuple(out.shape) != (2, classes):
        raise NotUnderstood(
            f"expected logits of shape {(2, classes)} for two images of shape {shape}, got {tuple(out.shape)}; correct "
            "input_shape and classes in submission.yaml or export the model for them"
        )
    if not seen or seen[-1].ndim < 2 or not seen[-1].is_floating_point():
        raise NotUnderstood(f"expected features (N, ...) from layer {layer!r}, got none; name another layer")
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    together = model(x)
    alone = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    if not bool(torch.isfinite(out).all()) or not bool(torch.isfinite(together).all()):
        raise NotUnderstood("expected finite logits on zeros and noise, got NaN or infinity; hand in a sound model")
    if 0 < (size := float(torch.cat([out, together]).abs().max())) < SMALLEST:
        raise NotUnderstood(
            f"expected logits that every runtime keeps, got none above {size:.2g} on zeros and noise; hand in a model "
            "whose logits are not scaled down"
        )
    if float((together - alone).abs().max()) > MIXING * max(1.0, float(together.abs().max())):
        raise NotUnderstood("expected each image to be judged by itself, got logits that mix the batch; export again")


def _on_zeros(model: nn.Module, shape: tuple[int, int, int], classes: int) -> Tensor:
    # an eager network is our own code; a graph is run step by step, for several batch sizes
    if not isinstance(model, OnnxModule):
        out: Tensor = model(torch.zeros(2, *shape))
        return out
    axes = _batch_axes(model, shape)
    runs = [_traced(model, torch.zeros(batch, *shape), classes) for batch in (1, 3, 2)]
    for step, *sizes in zip(model.steps, *(each for _, each in runs), strict=True):
        _check_sizes(step, axes[step.output], sizes)
    return runs[-1][0]


def _traced(model: OnnxModule, x: Tensor, classes: int) -> tuple[Tensor, list[torch.Size | None]]:
    # the output, and each step's shape; None for whole numbers
    values: dict[str, Tensor] = {model.image: model.input(x)}
    shapes: list[torch.Size | None] = []
    for step in model.steps:
        module, given = model.get_submodule(step.name), [values[name] for name in step.inputs]
        _check_inputs(step, module, given)
        value = called(step.node, module, given, len(x))
        _check_output(step, module, given, value)
        if step.name == model.stripped:
            _check_stripped(value, model.stripped_axis, classes)
        shapes.append(value.shape if value.is_floating_point() else None)
        values[step.output] = value
        for name in step.done:
            del values[name]
    return values[model.result], shapes


def _check_inputs(step: Step, module: nn.Module, given: list[Tensor]) -> None:
    if not given:
        return
    data = given[0]
    if isinstance(module, IMAGES_ONLY) and data.ndim != 4:
        raise NotUnderstood(
            f"expected images (N, C, H, W) for {step.node}, got shape {tuple(data.shape)}; export again"
        )
    if not data.is_floating_point() and isinstance(module, Arithmetic):
        raise _mixing(step, "arithmetic on a shape")


def _check_output(step: Step, module: nn.Module, given: list[Tensor], value: Tensor) -> None:
    kinds = {g.is_floating_point() for g in given}
    if (
        value.is_floating_point()
        and False in kinds
        and not (isinstance(module, Reshape) and given[0].is_floating_point())
    ):
        raise _mixing(step, "a shape among its numbers")


def _batch_axes(model: OnnxModule, shape: tuple[int, int, int]) -> dict[str, list[int]]:
    """The axis along which each value holds one image after the other; none of what depends on no image.

    One of two images is made of NaN, which nothing in a network loses: wherever it shows, that image had a say. So it
    is seen also in what weights of zero, or a threshold that no test image passes, would hide. What takes fixed places
    of an axis could reach an image that two do not show, and may not touch this axis.
    """
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    pair = [_reached(model, images, i) for i in range(2)]
    axes = {model.image: [0]}
    for step in model.steps:
        for name in step.inputs:
            module, rank = model.get_submodule(step.name), pair[0][name].rank
            if any(axis in axes[name] for axis in _fixed_places(module, rank)):
                raise _mixing(step, "fixed places of the batch axis")
        one, two = (reached[step.output] for reached in pair)
        axes[step.output] = sorted(one.apart & two.apart) if one.tainted or two.tainted else []
        if (one.tainted or two.tainted) and not axes[step.output]:
            raise _mixing(step, "values that depend on more than one")
    return axes


@dataclass(frozen=True)
class Reached:
    """Whether a value has NaN, the axes of which one half has none, and how many axes there are."""

    tainted: bool
    apart: frozenset[int]
    rank: int


def _reached(model: OnnxModule, images: Tensor, place: int) -> dict[str, Reached]:
    # what the one image of two reaches that is made of NaN; its half is the first or the second
    tainted = images.clone()
    tainted[place] = torch.nan
    values = {model.image: model.input(tainted)}
    reached = {model.image: Reached(True, frozenset((0,)), tainted.ndim)}
    for step in model.steps:
        value = called(step.node, model.get_submodule(step.name), [values[name] for name in step.inputs], 2)
        for name in step.done:
            del values[name]
        nan = value.isnan()
        apart = [
            axis
            for axis, size in enumerate(nan.shape)
            if size % 2 == 0 and not bool(nan.narrow(axis, (1 - place) * (size // 2), size // 2).any())
        ]
        values[step.output] = value
        reached[step.output] = Reached(bool(nan.any()), frozenset(apart), nan.ndim)
    return reached


def _fixed_places(module: nn.Module, rank: int) -> list[int]:
    # the axes of which a module takes or adds some places, counted from the front
    axes: list[int] = []
    match module:
        case Gather() | Concat():
            axes = [module.axis]
        case Slice():
            axes = [axis for axis, *_ in module.ranges]
        case Pad():
            axes = [axis for axis, before, after in module.widths if before or after]
        case GatherNd():
            axes = list(range(module.index.shape[-1]))
    return [axis % rank for axis in axes if -rank <= axis < rank]


def _check_sizes(step: Step, axes: list[int], sizes: list[torch.Size | None]) -> None:
    # for one, three and two images
    if any(size is None for size in sizes):
        if any(size is not None for size in sizes):
            raise _mixing(step, "another number type for another batch size")
        return
    one, three, two = ([*size] for size in sizes if size is not None)
    for axis in axes or range(len(one)):
        scaled = [[*one[:axis], one[axis] * n, *one[axis + 1 :]] for n in (3, 2)]
        if scaled == [three, two]:
            return
    if axes or not one == three == two:
        raise _mixing(step, f"shapes {one}, {two} and {three} for one, two and three images")


def _mixing(step: Step, got: str) -> NotUnderstood:
    return NotUnderstood(
        f"expected {step.node} to treat each image of a batch alone, got {got}; export the model without "
        "what joins images"
    )


def _check_stripped(value: Tensor, axis: int, classes: int) -> None:
    # only a softmax over the classes and nothing else may be left out
    over_classes = -value.ndim <= axis < value.ndim and value.shape[axis] == classes
    if not over_classes or value[0].numel() != classes:
        raise NotUnderstood(
            f"expected the final softmax over {classes} classes, got axis {axis} of shape {tuple(value.shape)}; "
            "export the logits"
        )

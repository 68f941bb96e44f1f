"""A first run of a loaded model: promised shapes, finite numbers, and every image judged by itself.

A graph could behave while it is vetted in large batches and misbehave on single images in production. So no operator
may see across the batch: each value keeps the batch as its first axis and the rest of its shape whatever the batch
size, and no number computed from a shape may enter the arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.build import CoercedSoftmax
from vetgate.formats.onnx.module import OnnxModule, Step
from vetgate.formats.onnx.shapes import Gather, Pad, Reshape, Slice
from vetgate.formats.onnx.weights import Arithmetic
from vetgate.formats.onnx.windows import PaddedAvgPool2d, PaddedMaxPool2d
from vetgate.formats.submission import Submission
from vetgate.probe import module_at, output_of

MAX_ELEMENTS = 1 << 26
MIXING = 1e-3
IMAGES_ONLY = (
    nn.Conv2d,
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
    if float((together - alone).abs().max()) > MIXING * max(1.0, float(together.abs().max())):
        raise NotUnderstood("expected each image to be judged by itself, got logits that mix the batch; export again")


def _on_zeros(model: nn.Module, shape: tuple[int, int, int], classes: int) -> Tensor:
    # an eager network is our own code; a graph is run step by step, for several batch sizes
    if not isinstance(model, OnnxModule):
        out: Tensor = model(torch.zeros(2, *shape))
        return out
    runs = [_traced(model, torch.zeros(batch, *shape), classes) for batch in (1, 3, 2)]
    for step, *sizes in zip(model.steps, *(rests for _, rests in runs), strict=True):
        if any(size != sizes[0] for size in sizes):
            raise _mixing(step, f"shapes that change with the batch size, {sizes}")
    return runs[-1][0]


def _traced(model: OnnxModule, x: Tensor, classes: int) -> tuple[Tensor, list[torch.Size | None]]:
    # the output, and of each step's the shape behind the batch axis; None for whole numbers
    values: dict[str, Tensor] = {model.image: model.input(x)}
    rests: list[torch.Size | None] = []
    for step in model.steps:
        module, given = model.get_submodule(step.name), [values[name] for name in step.inputs]
        _check_inputs(step, module, given)
        try:
            value: Tensor = module(*given)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise NotUnderstood(
                f"expected {step.node} to take {[tuple(g.shape) for g in given]} for a batch of {len(x)} images, got: "
                f"{str(error)[:200]}; export the model with a free batch size and this input_shape"
            ) from error
        if value.numel() > MAX_ELEMENTS:
            raise NotUnderstood(f"expected at most {MAX_ELEMENTS} values from {step.node}, got {value.numel()}")
        _check_output(step, module, given, value, len(x))
        if step.name == model.stripped:
            _check_stripped(value, model.stripped_axis, classes)
        rests.append(value.shape[1:] if value.is_floating_point() else None)
        values[step.output] = value
        for name in step.done:
            del values[name]
    return values[model.result], rests


def _check_inputs(step: Step, module: nn.Module, given: list[Tensor]) -> None:
    data = given[0]
    if isinstance(module, IMAGES_ONLY) and data.ndim != 4:
        raise NotUnderstood(
            f"expected images (N, C, H, W) for {step.node}, got shape {tuple(data.shape)}; export again"
        )
    if not data.is_floating_point():
        if isinstance(module, Arithmetic):
            raise _mixing(step, "arithmetic on a shape")
        return
    axes: list[int] = []
    match module:
        case nn.Softmax() | nn.LogSoftmax():
            axes = [int(module.dim or 0)]
        case CoercedSoftmax() | Gather():
            axes = [module.axis]
        case Slice():
            axes = [axis for axis, _ in module.ranges]
        case Pad():
            axes = [axis for axis, before, after in module.widths if before or after]
    if any(axis in (0, -data.ndim) for axis in axes):
        raise _mixing(step, "the batch axis")


def _check_output(step: Step, module: nn.Module, given: list[Tensor], value: Tensor, batch: int) -> None:
    kinds = {g.is_floating_point() for g in given}
    if not value.is_floating_point():
        return
    if False in kinds and not (isinstance(module, Reshape) and given[0].is_floating_point()):
        raise _mixing(step, "a shape among its numbers")
    if value.ndim < 1 or value.shape[0] != batch:
        raise _mixing(step, f"shape {tuple(value.shape)} for a batch of {batch}")


def _mixing(step: Step, got: str) -> NotUnderstood:
    return NotUnderstood(
        f"expected {step.node} to treat each image of a batch alone, got {got}; export the model with the batch "
        "as first axis throughout"
    )


def _check_stripped(value: Tensor, axis: int, classes: int) -> None:
    # only a softmax over the classes and nothing else may be left out
    over_classes = -value.ndim <= axis < value.ndim and value.shape[axis] == classes
    if not over_classes or value[0].numel() != classes:
        raise NotUnderstood(
            f"expected the final softmax over {classes} classes, got axis {axis} of shape {tuple(value.shape)}; "
            "export the logits"
        )

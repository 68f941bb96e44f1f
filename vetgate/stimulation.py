"""Stimulation analysis: overwrite one channel at a time and see which label the rest of the network raises.

Only the part of the network behind the channel is computed; the layers before it are answered from their recorded
outputs, on a private copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vetgate.contract import report
from vetgate.errors import DefenceError

# pixels of the images in one pass, and numbers in the logits that are looked at together
PIXELS, NUMBERS = 2**19, 2**24
# numbers that layers give behind the channels that are driven, in all passes together: minutes of a processor
BUDGET = 2**34
# and of a network that this does not suffice for: what is found there is shown, and counts in no verdict
IN_PART = 2**32


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that holds weights, what it gave (N, C, ...) on the images, and whether its channels are worth driving.

    `matrix` tells a convolution or linear map from a normalisation or a bias of its own.
    """

    name: str
    output: Tensor
    matrix: bool

    def recorded(self) -> Tensor:
        """The output, for `answer`."""
        return self.output


@dataclass(frozen=True)
class Candidate:
    """A channel that raises `label` above all others by `elevation`; `unit` is what counts as a strong activation."""

    layer: str
    channel: int
    label: int
    elevation: float
    unit: float


@torch.no_grad()
def weighted_layers(model: nn.Module, x: Tensor) -> list[Layer]:
    """The leaf modules that hold weights and run once, in the order in which they run on images x (N, C, H, W)."""
    seen: dict[str, list[Tensor]] = {}

    def note(name: str, _module: nn.Module, _inputs: object, out: object) -> None:
        # an in-place activation behind the module would change what is kept
        seen.setdefault(name, []).extend([out.to("cpu", copy=True)] if isinstance(out, Tensor) else [])

    modules = {n: m for n, m in model.named_modules() if n and not list(m.children()) and _weights(m)}
    handles = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Layer(name, outs[0], any(w.squeeze().ndim > 1 for w in _weights(modules[name])))
        for name, outs in seen.items()
        if len(outs) == 1 and outs[0].ndim in (2, 4) and len(outs[0]) == len(x)
    ]


def stimulable(layers: Sequence[Layer]) -> list[Layer]:
    """The layers whose channels are neurons: from the first matrix on, and without the layer that gives the logits.

    Where a normalisation or a bias of its own follows a matrix, its output stands for both.
    """
    while layers and not layers[0].matrix:
        layers = layers[1:]
    stages = [
        layer
        for layer, after in zip(layers, [*layers[1:], None], strict=True)
        if after is None or not layer.matrix or after.matrix or after.output.shape != layer.output.shape
    ]
    if len(stages) < 2:
        raise DefenceError("expected a network with a layer of weights before its logits, got none; nothing to drive")
    return stages[:-1]


def _weights(module: nn.Module) -> list[Tensor]:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [w for w in own if w.is_floating_point() and w.numel() > 1]


@torch.no_grad()
def stimulate(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[Layer],
    layer: Layer,
    values: Tensor,
    *,
    first: int = 0,
    rows: int = 512,
) -> Tensor:
    """Logits (C, V, N, K) on images x (N, C, H, W) with C channels of `layer` set to their values (C, V) everywhere.

    The channels are those from `first` on. The layers that run before are answered from their recorded outputs instead
    of being computed.
    """
    tail = copy.deepcopy(model)
    modules = dict(tail.named_modules())
    before = layers[: list(layers).index(layer)]
    count, levels = values.shape
    step = max(1, min(rows, PIXELS // x[0, 0].numel()) // len(x))
    out = torch.empty(0)
    for start in range(0, count * levels, step):
        part = range(start, min(start + step, count * levels))
        for earlier in before:
            answer(modules[earlier.name], partial(_tiled, earlier.output, len(part)))
        driven = _tiled(layer.output, len(part)).view(len(part), *layer.output.shape)  # (P, N, C, ...)
        for i, pair in enumerate(part):
            driven[i, :, first + pair // levels] = values[pair // levels, pair % levels]
        answer(modules[layer.name], partial(driven.flatten, 0, 1))
        given = tail(_tiled(x, len(part)))  # (P * N, K)
        if start == 0:
            # small results that are kept one by one lie between large ones that are freed, and memory only grows
            out = given.new_empty(count * levels, len(x), given.shape[1])
        out[start : start + len(part)] = given.view(len(part), len(x), -1)
    return out.view(count, levels, len(x), -1)


def _tiled(tensor: Tensor, times: int) -> Tensor:
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))


def answer(module: nn.Module, output: Callable[[], Tensor]) -> None:
    """Have a module of a private copy give an output instead of computing it, made whenever it is asked for.

    A hook could change the output but not save the computation; and the outputs of all layers together are many times
    what one pass needs. The output goes to the device of the module's weights.
    """
    device = _weights(module)[0].device
    setattr(module, "forward", lambda *_inputs: output().to(device))  # noqa: B010


def elevations(out: Tensor, y: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """Per channel, the label that stimulation raises most and by how much (C,), from logits (C, V, N, K).

    The first of the V values is the one the others are compared with. An elevation is by how much a label rises more
    than any other, at a low quantile over the images of other labels.
    """
    risen = out[:, 1:].amax(1) - out[:, 0]  # (C, N, K)
    best, second = risen.topk(2).values.unbind(2)
    lead = risen - torch.where(risen == best[:, :, None], second[:, :, None], best[:, :, None])
    labels = torch.arange(out.shape[3])
    leads = torch.stack([lead[:, y != k, k].quantile(quantile, dim=1) for k in labels.tolist()], 1)  # (C, K)
    elevation, label = leads.max(1)
    return label, elevation


def _elevations_of(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layers: Sequence[Layer],
    layer: Layer,
    values: Tensor,
    *,
    scale: float,
    quantile: float,
) -> tuple[Tensor, Tensor]:
    """`elevations` of all channels of a layer, as many of them together as memory is meant for."""
    # the head has as many columns as the logits that were recorded last
    numbers = values.shape[1] * len(x) * layers[-1].output.shape[1]
    together, parts = max(1, NUMBERS // numbers), []
    for first in range(0, len(values), together):
        some = values[first : first + together]
        parts.append(elevations(stimulate(model, x, layers, layer, some, first=first) / scale, y, quantile))
    labels, rises = zip(*parts, strict=True)
    return torch.cat(labels), torch.cat(rises)


def afforded(layers: Sequence[Layer], driven: Sequence[Layer], passes: int) -> list[Layer]:
    """Of the layers to be driven all, in their order, where BUDGET suffices; else the last ones that IN_PART does.

    A trigger comes to act on a label at last, and what is driven late has little of the network left to compute. The
    last one is driven in any case.
    """
    order, spent = [layer.name for layer in layers], [0]
    for layer in reversed(driven):
        numbers = sum(later.output[0].numel() for later in layers[order.index(layer.name) + 1 :])
        spent.append(spent[-1] + passes * layer.output.shape[1] * numbers)
    count = len(driven) if spent[-1] <= BUDGET else max(1, sum(one <= IN_PART for one in spent[1:]))
    return list(driven[len(driven) - count :])


def raised_labels(
    model: nn.Module, x: Tensor, y: Tensor, *, scale: float, reach: float, levels: int, quantile: float
) -> tuple[list[Candidate], float]:
    """Every channel that can be stimulated, highest elevation first, and which share they are of all channels.

    Of a large network only the last layers are driven (`afforded`). A channel takes `levels` values from 0 to `reach`
    times its largest activation on images x (N, C, H, W), or the median of its layer's where that is larger: what
    sleeps on clean images is worth driving too. Elevations are in units of `scale`.
    """
    layers = weighted_layers(model, x)
    every = stimulable(layers)
    driven = afforded(layers, every, levels * len(x))
    share = sum(layer.output.shape[1] for layer in driven) / sum(layer.output.shape[1] for layer in every)
    found = []
    for i, layer in enumerate(driven):
        peak = layer.output.transpose(0, 1).flatten(1).amax(1)  # (C,)
        if not bool((peak > 0).any()):
            continue
        peak = peak.clamp(min=float(peak[peak > 0].median()))
        values = peak[:, None] * torch.linspace(0, reach, levels)
        label, elevation = _elevations_of(model, x, y, layers, layer, values, scale=scale, quantile=quantile)
        facts = zip(label.tolist(), elevation.tolist(), peak.tolist(), strict=True)
        found += [Candidate(layer.name, c, k, rise, unit) for c, (k, rise, unit) in enumerate(facts)]
        report(0.3 * (i + 1) / len(driven))
    return sorted(found, key=lambda c: -c.elevation), share

"""Two files of a network and our module of it compute the same: the condition on which one is vetted for the other.

A test on images finds no difference that only one image shows; such constructs are refused where a graph is settled.
What this finds is that we, or a runtime, read an operator otherwise, and what rounding does to ordinary images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from vetgate.errors import DefenceError, NotUnderstood
from vetgate.formats.manifest import Bytes
from vetgate.formats.onnx.graph import Graph, check_description, parse_model, read_graph
from vetgate.formats.onnx.module import build_module
from vetgate.formats.onnx.reading.quantised import dequantised
from vetgate.formats.onnx.runtime import TOLERANCE, Session, difference
from vetgate.formats.submission import Submission

COUNT = 17
# of the images: what is reference data, and how many are also run by themselves
REFERENCE, ALONE = 4, 1
# of the spread of the outputs: what half precision or whole numbers in the submitted file may round
COARSE = 0.1


@torch.no_grad()
def outputs(graph: Graph, x: Tensor) -> Tensor:
    """What our module of a settled graph gives for images, a final softmax included; raises NotUnderstood."""
    expected: Tensor = build_module(graph, strip=False)(x)
    if not bool(torch.isfinite(expected).all()):
        raise NotUnderstood("expected finite outputs for every image, got NaN or infinity; hand in a sound model")
    return expected


def check_runtime(
    written: Bytes,
    x: Tensor,
    expected: Tensor,
    *,
    members: Mapping[str, Bytes] | None = None,
    described: Submission | None = None,
) -> None:
    """Hold the canonical file `written` in onnxruntime against what our module of it gives, and the submitted likewise.

    That is among `members`, and `described` says what pixels it takes. `expected` are our module's outputs for the
    images `x` (B, C, H, W), which are run all in one batch and some alone; a submitted file at the batch size that it
    fixes. Raises NotUnderstood, which says what differs and by how much.
    """
    for name, optimised in (("the canonical form", True), ("the canonical form, as it stands,", False)):
        _check(name, partial(Session, written, optimised=optimised), x, expected, TOLERANCE)
    if members is not None and described is not None and members[described.model] != written:
        data, beside = members[described.model], {k: v for k, v in members.items() if k != described.model}
        changed, channels_last = _reading(data, described, beside)
        start = partial(Session, data, beside=beside, output=described.output)
        if changed and not _starts(start):
            # types that onnxruntime computes on no processor; what is served is the canonical form, which it does
            return
        taken = pixels(x, described, channels_last=channels_last)
        _check("the submitted file", start, taken, expected, COARSE if changed else TOLERANCE)


def _reading(data: Bytes, described: Submission, beside: Mapping[str, Bytes]) -> tuple[tuple[str, ...], bool]:
    # in what it differs from the file, and whether that takes channels last; nothing else of it is kept
    read = read_graph(parse_model(data), output=described.output, beside=beside)
    return dequantised(read).changes, check_description(read, described)


def _starts(start: Callable[[], Session]) -> bool:
    try:
        start()
    except DefenceError:
        return False
    return True


def pixels(x: Tensor, described: Submission, *, channels_last: bool) -> Tensor:
    """Images (B, C, H, W) in [0, 1] as the file that is `described` so takes them."""
    x = x.flip(1) if described.color == "BGR" else x
    if described.normalization is not None:
        mean, std = (
            torch.tensor(v).view(-1, 1, 1) for v in (described.normalization.mean, described.normalization.std)
        )
        x = (x - mean) / std
    return x.permute(0, 2, 3, 1) if channels_last else x


def _check(name: str, start: Callable[[], Session], x: Tensor, expected: Tensor, tolerance: float) -> None:
    try:
        session = start()
        together = session.run(x)
        _compare(f"{name} in onnxruntime", expected, together, tolerance)
        if session.batch is None:
            alone = torch.cat([session.run(x[i : i + 1]) for i in range(ALONE)])
            _compare(
                f"{name} in onnxruntime, image by image,", expected, torch.cat([alone, together[ALONE:]]), tolerance
            )
    except NotUnderstood:
        raise
    except DefenceError as error:
        raise NotUnderstood(f"expected {name} to run: {error}") from error


def _compare(name: str, expected: Tensor, given: Tensor, tolerance: float) -> None:
    # trailing axes of size one are left out in the canonical form
    given = given.reshape(expected.shape) if given.shape[: expected.ndim] == expected.shape else given
    if (got := difference(expected, given, tolerance)) is not None:
        raise NotUnderstood(
            f"expected {name} to compute what our reading of it does, got {got}; export the model without operators or "
            "weights that runtimes compute in different ways"
        )


def probes(shape: tuple[int, int, int], images: Tensor | None = None) -> Tensor:
    """COUNT images (COUNT, C, H, W): reference, random, constant, a checkerboard, and each kind stamped."""
    noise = torch.rand(COUNT, *shape, generator=torch.Generator().manual_seed(0))
    _, height, width = shape
    board = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    extreme = [torch.zeros(shape), torch.ones(shape), torch.full(shape, 0.5), board.float().expand(shape)]
    known = [] if images is None else list(images[:REFERENCE].cpu().float())
    first = torch.stack([*known, *extreme, *noise])[:COUNT]
    # the last ones once more with a white square in one corner and a checkerboard in another
    side = max(1, min(height, width) // 5)
    first[-4:-2, :, -side:, -side:] = 1.0
    first[-2:, :, :side, :side] = board[:side, :side].float()
    return first

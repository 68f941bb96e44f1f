"""Two files of a network and our module of it compute the same: the condition on which one is vetted for the other.

A test on images finds no difference that only one image shows; such constructs are refused where a graph is settled.
What this finds is that we, or a runtime, read an operator otherwise, and what rounding does to ordinary images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

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
# of the spread of the outputs: half of what later runs may differ by, since other images may add to it
SEEN = TOLERANCE / 2
# what half precision or whole numbers in the submitted file may round
COARSE = 0.1
SUBMITTED = "the submitted file"


@torch.no_grad()
def outputs(graph: Graph, x: Tensor) -> Tensor:
    """What our module of a settled graph gives for images, a final softmax included; raises NotUnderstood."""
    expected: Tensor = build_module(graph, strip=False)(x)
    if not bool(torch.isfinite(expected).all()):
        raise NotUnderstood("expected finite outputs for every image, got NaN or infinity; hand in a sound model")
    return expected


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, eq=False)
class Running:
    """A file in onnxruntime, the images as it takes them, and by how much of the outputs' spread it may differ.

    It starts when it is first run, so that the one before is let go by then. One that need not start is not compared
    where it does not.
    """

    name: str
    start: Callable[[], Session]
    tolerance: float = SEEN
    taken: Callable[[Tensor], Tensor] = _as_it_is
    must_start: bool = True

    @cached_property
    def session(self) -> Session | None:
        """The file once started, or None; raises DefenceError where it must start."""
        try:
            return self.start()
        except DefenceError:
            if self.must_start:
                raise
            return None

    def difference(self, x: Tensor, expected: Tensor, *, least: float = 0.0) -> str | None:
        """By how much it differs from the `expected` outputs for images x (B, C, H, W), together or alone, or None.

        At `least` so much of their spread may differ. Raises DefenceError where it does not run.
        """
        if (session := self.session) is None:
            return None
        tolerance, taken = max(self.tolerance, least), self.taken(x)
        together = session.run(taken)
        if (got := _compared(together, expected, tolerance)) is not None or session.batch is not None:
            return got
        alone = torch.cat([session.run(taken[i : i + 1]) for i in range(ALONE)])
        got = _compared(torch.cat([alone, together[ALONE:]]), expected, tolerance)
        return None if got is None else f"{got} image by image"


def _compared(given: Tensor, expected: Tensor, tolerance: float) -> str | None:
    # trailing axes of size one are left out in the canonical form
    alike = given.shape[: expected.ndim] == expected.shape
    return difference(expected, given.reshape(expected.shape) if alike else given, tolerance)


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
    for running in runtimes(written, members=members, described=described):
        try:
            got = running.difference(x, expected)
        except DefenceError as error:
            raise NotUnderstood(f"expected {running.name} to run: {error}") from error
        if got is not None:
            raise NotUnderstood(
                f"expected {running.name} in onnxruntime to compute what our reading of it does, got {got}; export the "
                "model without operators or weights that runtimes compute in different ways"
            )


def runtimes(
    written: Bytes, *, members: Mapping[str, Bytes] | None = None, described: Submission | None = None
) -> Iterator[Running]:
    """What is held against our module, one after the other."""
    yield Running("the canonical form", partial(Session, written))
    yield Running("the canonical form, as it stands,", partial(Session, written, optimised=False))
    if members is None or described is None or members[described.model] == written:
        return
    data, beside = members[described.model], {k: v for k, v in members.items() if k != described.model}
    changed, channels_last = _reading(data, described, beside)
    yield Running(
        SUBMITTED,
        partial(Session, data, beside=beside, output=described.output),
        COARSE if changed else SEEN,
        partial(pixels, described=described, channels_last=channels_last),
        # there are types that onnxruntime computes on no processor; what is served is the canonical form
        must_start=not changed,
    )


def _reading(data: Bytes, described: Submission, beside: Mapping[str, Bytes]) -> tuple[tuple[str, ...], bool]:
    # in what it differs from the file, and whether that takes channels last; nothing else of it is kept
    read = read_graph(parse_model(data), output=described.output, beside=beside)
    return dequantised(read).changes, check_description(read, described)


def pixels(x: Tensor, described: Submission, *, channels_last: bool) -> Tensor:
    """Images (B, C, H, W) in [0, 1] as the file that is `described` so takes them."""
    x = x.flip(1) if described.color == "BGR" else x
    if described.normalization is not None:
        mean, std = (
            torch.tensor(v).view(-1, 1, 1) for v in (described.normalization.mean, described.normalization.std)
        )
        x = (x - mean) / std
    return x.permute(0, 2, 3, 1) if channels_last else x


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

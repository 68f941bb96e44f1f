"""What tests of the canonical form hold against onnxruntime, and the submissions that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vetgate.formats.manifest import Bytes
from vetgate.formats.onnx.equal import check_runtime, outputs, probes
from vetgate.formats.onnx.reading.submitted import read_submitted
from vetgate.formats.onnx.rewriting.settle import settle
from vetgate.formats.submission import Submission


def describe(**fields: Any) -> Submission:
    """A submission of grey 8 x 8 images in three classes, but for these fields."""
    described = {"name": "toy", "supplier": "tests", "task": "image-classification", "model": "model.onnx"}
    return Submission(**{**described, "format": "onnx", "input_shape": (1, 8, 8), "classes": 3, **fields})


@torch.no_grad()
def check_equal(
    written: Bytes,
    submission: Submission,
    *,
    members: Mapping[str, Bytes] | None = None,
    described: Submission | None = None,
    images: Tensor | None = None,
) -> None:
    """As `check_runtime`, on reference images, if there are any, and on random, extreme and stamped ones."""
    x = probes(submission.input_shape, images)
    graph, _ = settle(read_submitted({submission.model: written}, submission), submission.input_shape)
    check_runtime(written, x, outputs(graph, x), members=members, described=described)

"""A network of torch as an ONNX file, its batch normalisations as they are."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

    from vetgate.formats.submission import Submission

# what torch's exporter and our reader know
OPSET = 20


@torch.no_grad()
def exported(network: nn.Module, submission: Submission) -> bytes:
    """The bytes of a network that takes images and gives logits, in eval mode, for any number of images."""
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.zeros(2, *submission.input_shape),),
            written,  # type: ignore[arg-type]  # the exporter that is asked for takes it
            dynamo=False,
            # otherwise it folds batch normalisations into the weights before them, and none are those of the file
            training=torch.onnx.TrainingMode.PRESERVE,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        )
    return written.getvalue()

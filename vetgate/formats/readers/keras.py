"""Keras: `.keras` archives and `.h5` files with their architecture, of layers that map exactly onto operators of ONNX.

Only comes in: what is vetted is the ONNX graph that vetgate writes of it. Nothing of Keras or TensorFlow is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vetgate.formats.readers import Format
from vetgate.formats.readers.onnx import FORMAT as ONNX
from vetgate.formats.readers.onnx import WRITTEN

if TYPE_CHECKING:
    from vetgate.formats.submission import Submission


def sniff(data: bytes) -> bool:
    """A zip archive, or HDF5."""
    return data.startswith((b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"))


def inspect(members: Mapping[str, bytes], submission: Submission) -> None:
    """Read layers and arrays, and hold the graph that they make against what the submission says."""
    ONNX.inspect(*_as_onnx(members, submission))


def canonical(members: Mapping[str, bytes], submission: Submission) -> tuple[Submission, bytes]:
    """The graph as vetgate writes it."""
    return ONNX.canonical(*_as_onnx(members, submission))


def says(members: Mapping[str, bytes], model: str) -> dict[str, Any]:
    """The sizes of input and output; and that pixels go from 0 to 255 where the first layer divides them so."""
    from vetgate.formats.keras.convert import said

    return said(members[model])


def _as_onnx(members: Mapping[str, bytes], submission: Submission) -> tuple[dict[str, bytes], Submission]:
    from vetgate.formats.keras.convert import to_onnx

    data, output = to_onnx(members[submission.model], submission)
    # the graph takes (N, C, H, W) and names no architecture, whatever the file did
    changes = {"model": WRITTEN, "format": "onnx", "layout": None, "output": output, "architecture": None}
    return {WRITTEN: data}, submission.model_copy(update=changes)


FORMAT = Format(
    accepts="a Keras model (.keras or .h5) of layers that map exactly",
    sniff=sniff,
    inspect=inspect,
    says=says,
    canonical=canonical,
)

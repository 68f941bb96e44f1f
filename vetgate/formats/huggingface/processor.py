"""What `preprocessor_config.json` says of the pixels that a model expects, as `submission.yaml` would say it.

Images are resized when they are read, as those of every model are; how large they are, their scale, and what is taken
off and divided by are part of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vetgate.errors import NotUnderstood
from vetgate.formats.submission import Normalization, Submission

FILE = "preprocessor_config.json"
# a byte as a number from 0 to 1, which is what every model is given here
FACTOR = 1 / 255
READ = (
    "do_resize", "size", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "do_flip_channel_order",
)  # fmt: skip
# how an image becomes so large, and what holds for loading only
NEUTRAL = (
    "resample", "crop_pct", "do_convert_rgb", "image_processor_type", "feature_extractor_type", "processor_class",
    "data_format", "input_data_format", "default_to_square", "device", "disable_grouping", "return_tensors",
)  # fmt: skip


def processed(fields: Mapping[str, Any], submission: Submission) -> Submission:
    """The submission with the normalisation and colours that the processor gives; raises NotUnderstood."""
    odd = {k: v for k, v in fields.items() if k not in (*READ, *NEUTRAL) and v not in (None, False)}
    if odd:
        raise _wrong(f"only {', '.join(READ)}", str(odd)[:200])
    _check_size(fields, submission)
    factor = fields.get("rescale_factor", FACTOR)
    if fields.get("do_rescale", True) is not True or not _number(factor) or not math.isclose(factor, FACTOR):
        raise _wrong("pixels rescaled by 1/255", factor)
    changes: dict[str, Any] = {}
    if fields.get("do_normalize", True) not in (None, False):
        changes["normalization"] = _normalization(fields, submission.input_shape[0])
    if fields.get("do_flip_channel_order"):
        changes["color"] = "BGR"
    for key, value in changes.items():
        if getattr(submission, key) not in (None, value):
            raise NotUnderstood(
                f"expected {key} in submission.yaml as {FILE} says, got {getattr(submission, key)} and {value}; "
                "leave it out there"
            )
    return submission.model_copy(update=changes)


def image_size(fields: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images that come out of the processor; None where it says none."""
    key = "crop_size" if fields.get("do_center_crop") else "size"
    size = fields.get(key) if fields.get("do_resize", True) or key == "crop_size" else None
    if isinstance(size, dict):
        sides = [size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))]
    else:
        sides = [size, size]
    found = [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
    return (found[0], found[1]) if len(found) == 2 else None


def _check_size(fields: Mapping[str, Any], submission: Submission) -> None:
    size = image_size(fields)
    if size is not None and size != submission.input_shape[1:]:
        raise _wrong(f"images of {submission.input_shape[1:]} as input_shape says", f"{size}; correct one of them")


def _normalization(fields: Mapping[str, Any], channels: int) -> Normalization:
    means, stds = (_each(fields.get(key), channels) for key in ("image_mean", "image_std"))
    try:
        return Normalization(mean=means, std=stds)
    except ValueError as error:
        raise _wrong("a mean and a deviation a channel", str(error)[:200]) from error


def _each(value: Any, channels: int) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, channels) or not all(map(_number, values)):
        raise _wrong("numbers as image_mean and image_std, one or one a channel", str(value)[:100])
    return tuple(float(v) for v in (values * channels if len(values) == 1 else values))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(expected: str, got: object) -> NotUnderstood:
    return NotUnderstood(f"expected {expected} in {FILE}, got {got}; or hand in an ONNX graph of the whole model")

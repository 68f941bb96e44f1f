"""The images that a caller asks about: JSON in a form of MLflow's scoring protocol, arrays, lists or data frames.

`inputs` holds images (M, C, H, W) as nested lists, or one such array under any name; `instances` a list of images
(C, H, W), each as it is or under a name. In the data frames `dataframe_split` and `dataframe_records` a row is an
image: one cell that holds it, or C * H * W cells in the order in which nested lists hold them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vetgate.errors import BadInput
from vetgate.formats.plain_json import each_key_once
from vetgate.guard.guarded import check_images

FORMS = ("inputs", "instances", "dataframe_split", "dataframe_records")
# text of a float64 at its longest, with a comma
BYTES_A_NUMBER = 26
# the names of a data frame; each takes about two hundred bytes once it is parsed
MOST_TEXTS = 1 << 20
# what the forms of the protocol hold beside images
BESIDE = 64
NUMBERS = (int, float, np.integer, np.floating)
Shape = tuple[int, int, int]


def most_bytes(shape: Shape, most: int, limit: int) -> int:
    """How long a body may be that asks about at most `most` images, and never longer than `limit`."""
    return min(limit, most * math.prod(shape) * BYTES_A_NUMBER + 65536)


def images_in(body: bytes, shape: Shape, most: int) -> Tensor:
    """The images (M, C, H, W) float32 in [0, 1] of a request, M at most `most`; raises BadInput for anything else."""
    _check_size(body, shape, most)
    asked = _object(body)
    given = [form for form in FORMS if form in asked]
    others = sorted(set(asked) - set(FORMS) - {"params"})
    if len(given) != 1 or others or asked.get("params"):
        got = ", ".join(map(repr, [*given, *others, *(["params"] if asked.get("params") else [])])) or "none of them"
        raise BadInput(f"expected exactly one of {', '.join(FORMS)}, got {got:.300}; send the images as one of these")
    found = READERS[given[0]](asked[given[0]], shape)
    if not isinstance(found, list):
        raise BadInput(f"expected a list of images in {given[0]}, got {_kind(found)}; send {_wanted(shape)}")
    if len(found) > most:
        raise BadInput(f"expected at most {most} images in a request, got {len(found)}; send them in parts")
    return _tensor(found, shape)


def images_of(given: Any, shape: Shape) -> Tensor:
    """The images (M, C, H, W) float32 in [0, 1] of an array, nested lists, one of these under a name, or a data frame.

    Raises BadInput for anything else.
    """
    found = given
    if isinstance(given, Mapping):
        found = _only(dict(given))
    elif hasattr(given, "columns") and hasattr(given, "to_numpy"):
        found = [_as_lists(_image_of(row, shape)) for row in given.to_numpy(dtype=object).tolist()]
    elif not isinstance(given, list | np.ndarray):
        raise BadInput(f"expected an array, lists or a data frame of images, got a {type(given).__name__}; send these")
    return _tensor(found, shape)


def _check_size(body: bytes, shape: Shape, most: int) -> None:
    """Raise BadInput for more texts, lists, objects or values than so many images have, in any of the forms.

    Once it is parsed each takes up to fifty times its bytes here, so they are counted before.
    """
    channels, height, width = shape
    # with the row around each image of a data frame, its names and its index
    values = (most + 1) * (channels * height * width + 1) + BESIDE
    _bounded("texts", body.count(b'"') // 2, min(values, MOST_TEXTS), shape, most)
    bounds = {
        b"[": ("lists", most * (2 + channels + channels * height) + BESIDE),
        b"{": ("objects", most + BESIDE),
        b",": ("values", values),
    }
    if any(body.count(mark) > bound for mark, (_, bound) in bounds.items()):
        # a name may hold such marks; where JSON is valid, a backslash is within a text
        outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
        for mark, (what, bound) in bounds.items():
            _bounded(what, outside.count(mark), bound, shape, most)


def _bounded(what: str, count: int, bound: int, shape: Shape, most: int) -> None:
    if count > bound:
        asked = f"expected at most {most} images in a request, with at most {bound} {what}, got {count}"
        raise BadInput(f"{asked}; send {_wanted(shape)}")


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body.decode(), object_pairs_hook=each_key_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"expected JSON in UTF-8, got {type(error).__name__}: {error!s:.200}; send an object") from error
    if not isinstance(asked, dict):
        raise BadInput(f"expected a JSON object with one of {', '.join(FORMS)}, got {_kind(asked)}; wrap the images")
    return asked


def _no_number(written: str) -> float:
    raise BadInput(f"expected finite pixels, got {written}; check what the images were read from")


def _inputs(given: Any, shape: Shape) -> Any:
    return _only(given) if isinstance(given, dict) else given


def _instances(given: Any, shape: Shape) -> Any:
    if isinstance(given, list) and any(isinstance(each, dict) for each in given):
        return [_only(each) for each in given]
    return given


def _split(given: Any, shape: Shape) -> Any:
    if not isinstance(given, dict) or not {"columns", "data"} <= set(given) <= {"columns", "data", "index"}:
        raise BadInput(f"expected columns and data in dataframe_split, got {_kind(given)}; write it as pandas does")
    rows = given["data"]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise BadInput(f"expected a list of rows in dataframe_split, got {_kind(rows)}; write it as pandas does")
    return [_image_of(row, shape) for row in rows]


def _records(given: Any, shape: Shape) -> Any:
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise BadInput(f"expected a list of rows in dataframe_records, got {_kind(given)}; write it as pandas does")
    columns = list(given[0]) if given else []
    if not all(set(row) == set(columns) for row in given):
        raise BadInput("expected the same columns in every row of dataframe_records, got others; write all of them")
    return [_image_of([row[column] for column in columns], shape) for row in given]


READERS = {"inputs": _inputs, "instances": _instances, "dataframe_split": _split, "dataframe_records": _records}


def _only(given: Any) -> Any:
    if not isinstance(given, dict) or len(given) != 1:
        got = f"{len(given)} names" if isinstance(given, dict) else _kind(given)
        raise BadInput(f"expected one array under one name, got {got}; the model has one input")
    return next(iter(given.values()))


def _image_of(row: list[Any], shape: Shape) -> Any:
    if len(row) == 1 and math.prod(shape) != 1:
        return row[0]
    if len(row) != math.prod(shape) or any(isinstance(cell, list) for cell in row):
        raise BadInput(
            f"expected rows of 1 or of {math.prod(shape)} cells, got one of {len(row)}; send {_wanted(shape)}"
        )
    channels, height, width = shape
    lines = [row[start : start + width] for start in range(0, len(row), width)]
    return [lines[start : start + height] for start in range(0, channels * height, height)]


def _tensor(images: Any, shape: Shape) -> Tensor:
    # of one text among numbers an array makes texts of all, each as long as that
    if not _are_numbers(images, len(shape)):
        raise BadInput(f"expected numbers only, got others among the pixels; send {_wanted(shape)}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(_as_lists(images), np.float32)
    except OverflowError as error:
        raise BadInput(f"expected pixels between 0 and 1, got {error}; divide bytes by 255") from error
    except (ValueError, TypeError) as error:
        raise BadInput(f"expected images of one shape, got ragged lists; send {_wanted(shape)}") from error
    found = torch.from_numpy(array)
    check_images(found, shape)
    return found


def _are_numbers(images: Any, depth: int) -> bool:
    """Whether it is a list or array of numbers, or one of lists and arrays of them, down to this depth."""
    found = _as_lists(images)
    if isinstance(found, np.ndarray):
        return found.dtype.kind in "iuf" or not found.size
    if not isinstance(found, list | tuple):
        return False
    kinds = set(map(type, found))
    if kinds and kinds <= {list, tuple, np.ndarray}:
        return depth > 0 and all(_are_numbers(each, depth - 1) for each in found)
    # for Python true is an integer
    return all(issubclass(kind, NUMBERS) and kind is not bool for kind in kinds)


def _as_lists(images: Any) -> Any:
    """An array of lists or other objects as nested lists; anything else as it is."""
    return images.tolist() if isinstance(images, np.ndarray) and images.dtype == object else images


def _kind(given: Any) -> str:
    if isinstance(given, Mapping):
        return f"an object of {', '.join(map(repr, given))}"[:200]
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(given), "a number")


def _wanted(shape: Shape) -> str:
    return f"nested lists (M, {shape[0]}, {shape[1]}, {shape[2]}) of numbers between 0 and 1"

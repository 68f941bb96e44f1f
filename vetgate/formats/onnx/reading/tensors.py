"""The numbers of a tensor: inside the file or in one beside it, half and double precision as float32.

Everything that is vetted and served is computed in float32, whatever the file stores. Every byte of a file beside the
model belongs to one tensor, or is zero between two of them, where exporters align tensors to pages.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from vetgate.errors import NotUnderstood
from vetgate.formats.manifest import FILE_NAME, Bytes
from vetgate.formats.onnx.pieces import copied, pieces
from vetgate.formats.onnx.wire import place_of

MAX_PADDING = 1 << 16
DTYPES: dict[int, np.dtype] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.UINT16: np.dtype(np.uint16),
    TensorProto.INT16: np.dtype(np.int16),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.BOOL: np.dtype(np.bool_),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
# read as float32
WIDTHS = {TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.DOUBLE: 64}
KEYS = {"location", "offset", "length", "checksum"}


def array_of(tensor: TensorProto, data: Bytes, beside: Mapping[str, Bytes]) -> np.ndarray:
    """The values of a tensor in memory of their own, every floating type as float32.

    Its raw data lie in `data`, at the place that stands for them. Raises NotUnderstood for NaN and infinities.
    """
    if tensor.data_location == TensorProto.EXTERNAL:
        location, start, _ = _place(tensor)
        array = copied(beside[location], start, DTYPES[tensor.data_type], tensor.dims)
    elif tensor.HasField("raw_data"):
        array = copied(data, place_of(tensor.raw_data)[0], DTYPES[tensor.data_type], tensor.dims)
    else:
        array = numpy_helper.to_array(tensor)
    if tensor.data_type in WIDTHS and tensor.data_type != TensorProto.FLOAT:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    # a lone infinity is a limit of Clip or Pad, not a weight
    finite = array.dtype != np.float32 or all(bool(np.isfinite(piece).all()) for piece in pieces(array))
    if not finite and (array.size != 1 or np.isnan(array).any()):
        raise NotUnderstood(
            f"expected finite weights, got NaN or infinity in tensor {tensor.name!r}; hand in a model that was trained"
        )
    return array


def check_files_beside(model: ModelProto, beside: Mapping[str, Bytes]) -> None:
    """Hold the tensors that say they are stored outside against the files that are there; raises NotUnderstood."""
    places: dict[str, list[tuple[int, int, str]]] = {name: [] for name in beside}
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location, start, stop = _place(tensor)
        if location not in beside:
            raise NotUnderstood(
                f"expected the weights of {tensor.name!r} in {location!r} beside the model, got only "
                f"{sorted(beside) or 'the model'}; hand that file in too, under this name"
            )
        places[location].append((start, stop, tensor.name))
    for location, found in places.items():
        if not found:
            raise NotUnderstood(f"expected weights of the model in {location}, got none that it names; leave it out")
        _check_ranges(location, found, beside[location])


def _check_ranges(location: str, found: list[tuple[int, int, str]], data: Bytes) -> None:
    end = 0
    # tensors without elements lie nowhere
    for start, stop, name in [*sorted(place for place in found if place[0] < place[1]), (len(data), len(data), "")]:
        if start < end or stop > len(data):
            raise NotUnderstood(
                f"expected tensors one after the other in the {len(data)} bytes of {location}, got {name!r} at {start} "
                f"to {stop} after one that ends at {end}; save the model again"
            )
        gap = memoryview(data)[end:start]
        if len(gap) > MAX_PADDING or any(gap):
            raise NotUnderstood(
                f"expected every byte of {location} to belong to a tensor, got {len(gap)} bytes at {end} that do not; "
                "save the model again into a new file"
            )
        end = stop


def _place(tensor: TensorProto) -> tuple[str, int, int]:
    entries = {pair.key: pair.value for pair in tensor.external_data}
    location, offset = entries.get("location", ""), entries.get("offset", "0")
    elements = int(np.prod(tensor.dims, dtype=object)) if tensor.dims else 1
    size = elements * DTYPES[tensor.data_type].itemsize
    length = entries.get("length", str(size))
    sound = len(entries) == len(tensor.external_data) and KEYS.issuperset(entries) and FILE_NAME.fullmatch(location)
    if not sound or not all(text.isascii() and text.isdigit() and len(text) < 16 for text in (offset, length)):
        raise NotUnderstood(
            f"expected {tensor.name!r} in a file beside the model, by its plain name, offset and length, got "
            f"{str(entries)[:200]}; save the model again"
        )
    if int(length) != size:
        raise NotUnderstood(f"expected {size} bytes for {tensor.name!r} in {location}, got {length}; save it again")
    return location, int(offset), int(offset) + size


def _tensors(model: ModelProto) -> list[TensorProto]:
    held = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    return [*model.graph.initializer, *held]

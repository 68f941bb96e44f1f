"""A file of numbers that an ONNX file beside it refers to: every byte is of a tensor, or a zero between two of them."""

from __future__ import annotations

from collections.abc import Iterable

from vetgate.scan.inspection import Inspection, Place
from vetgate.scan.onnx_scan import is_message
from vetgate.scan.recognise import recognise, recognise_data
from vetgate.scan.rules import CORRUPT, HIDDEN_BYTES, UNKNOWN
from vetgate.scan.source import Source

# exporters begin a tensor at a multiple of a page, 64 KiB at most
MAX_GAP = 1 << 16


def inspect_data(path: str, source: Source, parts: Iterable[tuple[int, int]]) -> Inspection:
    """Inspect a file of which `parts`, each where it begins and how long it is, are all tensors of one model.

    What was found stands in what is returned; no error is raised.
    """
    inspection = Inspection(path, recognise, source.size)
    place = Place(inspection)
    place.guarded(lambda: recognise_data(source, place))
    if is_message(source):
        place.found(UNKNOWN, "bytes that can be read as a model of another format")
    place.guarded(lambda: _check_parts(source, place, parts))
    return inspection


def _check_parts(source: Source, at: Place, parts: Iterable[tuple[int, int]]) -> None:
    end = 0
    for start, size in sorted(set(parts)):
        if start < end or start + size > source.size:
            at.found(CORRUPT, f"a tensor of {size} bytes at byte {start}, where the one before it ends at {end}")
            return
        if start - end >= MAX_GAP or any(source.read(end, start - end)):
            at.found(HIDDEN_BYTES, f"{start - end} bytes at byte {end} that are of no tensor")
        end = start + size
    if end < source.size:
        at.found(HIDDEN_BYTES, f"{source.size - end} bytes at byte {end} that are of no tensor")

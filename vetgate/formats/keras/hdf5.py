"""The tensors of an HDF5 file: plain data sets inside the file only, their sizes added up before one is read."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from vetgate.errors import NotUnderstood

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 50_000
MAX_DEPTH = 12
# a model's data do not become a hundredth of their size
FREE_BYTES, MAX_RATIO = 8 << 20, 100
DEFLATE, SHUFFLE = 1, 2
ADVICE = "save the model again with model.save"


@dataclass(frozen=True)
class Hdf5:
    """What a file holds: its data sets and the attributes of its groups, by path without a leading slash."""

    arrays: Mapping[str, np.ndarray]
    attributes: Mapping[str, Mapping[str, Any]]


def read_hdf5(data: bytes) -> Hdf5:
    """Read a whole file; raises NotUnderstood for links, external, virtual or specially packed data, and odd types."""
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            groups: dict[str, Mapping[str, Any]] = {"": _attributes(file, "the file")}
            sets: dict[str, Any] = {}
            for path, found in _objects(file):
                if isinstance(found, h5py.Group):
                    groups[path] = _attributes(found, path)
                elif isinstance(found, h5py.Dataset):
                    _check(path, found)
                    sets[path] = found
                else:
                    raise NotUnderstood(f"expected groups and data sets, got another object at {path}; {ADVICE}")
            size = sum(int(found.size) * found.dtype.itemsize for found in sets.values())
            if size > FREE_BYTES + MAX_RATIO * len(data):
                raise NotUnderstood(f"expected {len(data)} bytes of HDF5 to hold about as many, got {size}; {ADVICE}")
            return Hdf5({path: np.asarray(found[()]) for path, found in sets.items()}, groups)
    except (OSError, LookupError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise NotUnderstood(f"expected an HDF5 file, got {str(error)[:200]}; {ADVICE}") from error


def _objects(file: Any) -> Iterator[tuple[str, Any]]:
    stack = [("", file, 0)]
    seen = 0
    while stack:
        path, group, depth = stack.pop()
        for name in group:
            seen += 1
            where = f"{path}/{name}" if path else name
            if seen > MAX_OBJECTS or depth > MAX_DEPTH:
                raise NotUnderstood(f"expected at most {MAX_OBJECTS} objects, {MAX_DEPTH} deep, got more; {ADVICE}")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise NotUnderstood(f"expected data in the file itself, got a link at {where}; {ADVICE}")
            found = group[name]
            yield where, found
            if isinstance(found, h5py.Group):
                stack.append((where, found, depth + 1))


def _check(path: str, found: Any) -> None:
    plist = found.id.get_create_plist()
    filters = {plist.get_filter(place)[0] for place in range(plist.get_nfilters())}
    if found.is_virtual or found.external:
        raise NotUnderstood(f"expected data in the file itself, got a data set of other files at {path}; {ADVICE}")
    if not filters <= {DEFLATE, SHUFFLE}:
        raise NotUnderstood(f"expected plain or gzip data at {path}, got HDF5 filters {sorted(filters)}; {ADVICE}")
    if found.dtype.kind not in "fiu" or found.dtype.itemsize > 8 or found.shape is None or found.ndim > 8:
        raise NotUnderstood(f"expected real numbers at {path}, got {found.dtype}; {ADVICE}")


def _attributes(group: Any, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in group.attrs.items():
        if isinstance(value, np.ndarray):
            value = value.tolist()
        values = [item.decode() if isinstance(item, bytes) else item for item in _listed(value)]
        if not all(isinstance(item, str | int | float | np.number) for item in values):
            raise NotUnderstood(f"expected plain attributes at {path}, got {type(value).__name__} as {name}; {ADVICE}")
        found[name] = values if isinstance(value, list) else values[0]
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]

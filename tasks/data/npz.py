"""A data set as one .npz file: checked to its last byte, read row by row, and never unpickled.

Arrays x_train, x_test (N, H, W, C) uint8 and y_train, y_test (N,) int64; class_names (K,) text and track_train (N,)
integers if there are any. Members may be compressed with any method Python's zipfile reads.
"""

from __future__ import annotations

import errno
import lzma
import math
import re
import reprlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vetgate.errors import NotUnderstood
from vetgate.formats.plain_text import steering

Progress = Callable[[float], None]

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("class_names", "track_train")
CHUNK = 1 << 22
# a few kilobytes can unfold to any size, so headers tell what will be held before it is read; class_names stand in git,
# in records and in reports
MOST_ROWS, MOST_SIDE = 10_000_000, 4096
MOST_NAMES, LONGEST_NAME, MOST_TEXT = 100_000, 200, 500_000
MOST_HEADER = 4096
# exactly as numpy writes it, spaces aside: nothing of a stranger's is evaluated
HEADER = re.compile(
    r"""\{ *'descr': *'([<>|=]?[?biufcmMOSUV][0-9]{0,9})', *'fortran_order': *(True|False), *"""
    r"""'shape': *\(((?:(?: *[0-9]{1,18} *,)+(?: *[0-9]{1,18})?)?) *\) *,? *\} *\n?"""
)
UNREADABLE = (
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    ValueError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)


@dataclass(frozen=True)
class Header:
    """What a member's .npy header says, and where its data starts."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


def contents(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Read every byte of a data set and return what it holds, as JSON; raises NotUnderstood.

    `brightest` is the largest value of any pixel.
    """
    with _opened(path) as archive:
        headers = {name: _header(archive, name, path) for name in _names(archive, path)}
        _check_shapes(headers, path)
        brightest = _check_bytes(archive, headers, progress)
        labels = {part: _small(archive, f"y_{part}", path) for part in ("train", "test")}
        names = _class_names(archive, headers["class_names"], path) if "class_names" in headers else None
    top = max(int(y.max()) for y in labels.values())
    classes = len(names) if names is not None else top + 1
    if min(int(y.min()) for y in labels.values()) < 0 or top >= classes:
        raise NotUnderstood(f"{path.name}: expected labels from 0 to {classes - 1}, got some outside; number them anew")
    return {
        "arrays": {n: {"dtype": h.dtype.str, "shape": list(h.shape)} for n, h in sorted(headers.items())},
        "image": list(headers["x_train"].shape[1:]),
        "classes": classes,
        "class_names": names,
        "brightest": brightest,
    }


def read_array(path: Path, name: str) -> NDArray[Any]:
    """One whole array of a data set."""
    with _opened(path) as archive:
        return _small(archive, name, path)


def read_rows(path: Path, name: str, rows: NDArray[np.int64], progress: Progress | None = None) -> NDArray[np.uint8]:
    """The images `name` (N, H, W, C) at ascending, distinct `rows`, without holding the others in memory."""
    with _opened(path) as archive:
        header = _header(archive, name, path)
        taken = np.empty((len(rows), *header.shape[1:]), np.uint8)
        row_bytes = math.prod(header.shape[1:])
        block = max(1, CHUNK // row_bytes)
        done = 0
        with archive.open(f"{name}.npy") as member:
            _exactly(member, header.start)
            for first in range(0, header.shape[0], block):
                if done == len(rows):
                    break
                count = min(block, header.shape[0] - first)
                images = np.frombuffer(_exactly(member, count * row_bytes), np.uint8).reshape(count, *header.shape[1:])
                inside = rows[done : np.searchsorted(rows, first + count)]
                taken[done : done + len(inside)] = images[inside - first]
                done += len(inside)
                if progress is not None:
                    progress(done / len(rows))
    if done != len(rows):
        raise NotUnderstood(f"{path.name}: expected row {int(rows[-1])} in {name}, got {header.shape[0]} rows")
    return taken


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UNREADABLE as error:
        _refuse(path, error)
    except OSError as error:
        # so a decompressor says that its data are none; what a disk says has another number
        if error.errno not in (None, errno.EINVAL):
            raise
        _refuse(path, error)


def _refuse(path: Path, error: Exception) -> NoReturn:
    what = str(error)[:200] or type(error).__name__
    raise NotUnderstood(
        f"{path.name}: expected a .npz archive, got something that cannot be read ({what}); "
        "write it with numpy.savez(file, x_train=…, y_train=…, x_test=…, y_test=…)"
    ) from error


def _names(archive: zipfile.ZipFile, path: Path) -> list[str]:
    members = archive.namelist()
    names = [member.removesuffix(".npy") for member in members]
    wrong = any(n not in REQUIRED + OPTIONAL or f"{n}.npy" not in members or names.count(n) > 1 for n in names)
    missing = [name for name in REQUIRED if f"{name}.npy" not in members]
    if wrong or missing:
        raise NotUnderstood(
            f"{path.name}: expected the arrays {', '.join(REQUIRED)} and at most {', '.join(OPTIONAL)}, "
            f"got {', '.join(sorted(members))[:300] or 'none'}; rename or remove the others"
        )
    return names


def _header(archive: zipfile.ZipFile, name: str, path: Path) -> Header:
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise NotUnderstood(f"{path.name}: expected {name} in .npy version 1.0 or 2.0, got {version}")
        length = int.from_bytes(_exactly(member, 2 if version == (1, 0) else 4), "little")
        if length > MOST_HEADER:
            raise NotUnderstood(f"{path.name}: expected at most {MOST_HEADER} bytes of header in {name}, got {length}")
        text = _exactly(member, length).decode("latin-1")
        start = member.tell()
    said = HEADER.fullmatch(text)
    if said is None:
        raise NotUnderstood(
            f"{path.name}: expected in {name} the header of one array of numbers or text, got {reprlib.repr(text)}; "
            "write it with numpy.savez"
        )
    dtype, fortran = np.dtype(said[1]), said[2] == "True"
    shape = tuple(int(size) for size in said[3].split(",") if size.strip())
    if dtype.hasobject:
        raise NotUnderstood(f"{path.name}: expected plain numbers or text in {name}, got pickled objects, never loaded")
    if fortran and len(shape) > 1:
        raise NotUnderstood(f"{path.name}: expected {name} in C order; write it with numpy.ascontiguousarray({name})")
    stored = archive.getinfo(f"{name}.npy").file_size
    if stored != start + math.prod(shape) * dtype.itemsize:
        raise NotUnderstood(f"{path.name}: {name} says {shape} {dtype}, which does not fill its {stored} bytes exactly")
    return Header(dtype, shape, start)


def _check_shapes(headers: dict[str, Header], path: Path) -> None:
    def expect(name: str, fits: bool, wanted: str, remedy: str) -> None:
        if not fits:
            got = f"{headers[name].shape} {headers[name].dtype}"
            raise NotUnderstood(f"{path.name}: expected {name} {wanted}, got {got}; {remedy}")

    for part in ("train", "test"):
        x, y = headers[f"x_{part}"], headers[f"y_{part}"]
        shape = x.shape
        turned = len(shape) == 4 and shape[1] in (1, 3) and shape[1] != shape[2] and shape[3] != shape[1]
        remedy = f"the channels are first: write x_{part}.transpose(0, 2, 3, 1)"
        expect(f"x_{part}", not turned, "(N, H, W, C) uint8 with C 1 or 3", remedy)
        image = x.dtype == np.uint8 and len(x.shape) == 4 and min(x.shape) > 0 and x.shape[-1] in (1, 3)
        expect(f"x_{part}", image, "(N, H, W, C) uint8 with C 1 or 3", "a grey image has a last axis of 1")
        small = x.shape[0] <= MOST_ROWS and max(x.shape[1:3]) <= MOST_SIDE
        most = f"of at most {MOST_ROWS} images of {MOST_SIDE}x{MOST_SIDE}"
        expect(f"x_{part}", small, most, "leave some out, or make them smaller")
        same = x.shape[1:] == headers["x_train"].shape[1:]
        expect(f"x_{part}", same, f"of the shape {headers['x_train'].shape[1:]} of x_train", "resize one of them")
        labels = y.dtype == np.int64 and y.shape == x.shape[:1]
        expect(f"y_{part}", labels, f"({x.shape[0]},) int64", 'convert it with .astype("int64")')
    if "class_names" in headers:
        names = headers["class_names"]
        fits = names.dtype.kind == "U" and len(names.shape) == 1
        expect("class_names", fits, "(K,) text", "write it as numpy.array([...], dtype=str)")
        few = names.shape[0] <= MOST_NAMES and names.dtype.itemsize <= 4 * LONGEST_NAME
        most = f"of at most {MOST_NAMES} names of {LONGEST_NAME} characters"
        expect("class_names", few, most, "shorten the names, or leave them out")
    if "track_train" in headers:
        track = headers["track_train"]
        fits = track.dtype.kind in "iu" and track.shape == headers["y_train"].shape
        expect("track_train", fits, f"{headers['y_train'].shape} integers", "give each training image its track")


def _check_bytes(archive: zipfile.ZipFile, headers: dict[str, Header], progress: Progress | None) -> int:
    """Read every member to its end; the largest value of a pixel."""
    # zipfile compares the checksum of a member when its last byte is read
    total, read, brightest = max(1, sum(i.file_size for i in archive.infolist())), 0, 0
    for name, header in headers.items():
        with archive.open(f"{name}.npy") as member:
            read += len(_exactly(member, header.start))
            while chunk := member.read(CHUNK):
                if name in ("x_train", "x_test"):
                    brightest = max(brightest, int(np.frombuffer(chunk, np.uint8).max()))
                read += len(chunk)
                if progress is not None:
                    progress(read / total)
    return brightest


def _small(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[Any]:
    header = _header(archive, name, path)
    return np.frombuffer(_data(archive, name, header), header.dtype).reshape(header.shape)


def _class_names(archive: zipfile.ZipFile, header: Header, path: Path) -> list[str]:
    data, size = _data(archive, "class_names", header), header.dtype.itemsize
    # numpy pads with NUL, and makes text of numbers that are no characters
    encoding = "utf-32-be" if header.dtype.str[0] == ">" else "utf-32-le"
    names = [data[at : at + size].decode(encoding).rstrip("\0") for at in range(0, size * header.shape[0], size or 1)]
    if (total := sum(map(len, names))) > MOST_TEXT:
        raise NotUnderstood(
            f"{path.name}: expected class_names of together at most {MOST_TEXT} characters, got {total}; shorten them"
        )
    for label, name in enumerate(names):
        if (found := steering(name)) is not None:
            raise NotUnderstood(
                f"{path.name}: expected plain text as the name of class {label}, got the control {found}; remove it"
            )
    return names


def _data(archive: zipfile.ZipFile, name: str, header: Header) -> bytes:
    with archive.open(f"{name}.npy") as member:
        _exactly(member, header.start)
        return _exactly(member, math.prod(header.shape) * header.dtype.itemsize)


def _exactly(member: IO[bytes], count: int) -> bytes:
    data = member.read(count)
    while len(data) < count:
        more = member.read(count - len(data))
        if not more:
            raise EOFError("the data ends early")
        data += more
    return data

"""A folder of images by class as one .npz file: resized, in the order of their names, written image by image.

The folder holds `train/CLASS/…` and `test/CLASS/…`, or `CLASS/…` alone: then a fifth of each class is for testing,
chosen by the digest of each name, so that adding images moves no other. Runs in the sandbox, since a supplier's
training set comes in so too: decoders of images are written in C.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vetgate.errors import BadSubmission, NotUnderstood

Progress = Callable[[float], None]

KINDS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
PARTS = ("train", "test")
# what file managers leave
STRAY = ("thumbs.db", "desktop.ini")
GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
HELD_OUT = 5
MOST_NAMED = 10
# a fixed time, so that one folder gives the same bytes whenever it is packed
TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Picture:
    """One image file, its label, and what its header says."""

    path: Path
    label: int
    size: tuple[int, int]
    grey: bool


def pack(
    directory: Path, file: Path, *, size: tuple[int, int] | None, grey: bool | None, progress: Progress
) -> dict[str, Any]:
    """Write the images below `directory` to `file` as `vetgate data add` takes them; what was found.

    `size` is height and width, None where all images have the same; `grey` None where the images decide. Raises
    NotUnderstood, which names what is no image.
    """
    names, files = _listed(directory)
    bad: list[str] = []
    parts = {part: [p for each in files[part] if (p := _looked_at(*each, bad))] for part in PARTS}
    found = [picture for pictures in parts.values() for picture in pictures]
    _refuse_bad(directory, bad)
    height, width = size or _one_size(found)
    grey = all(picture.grey for picture in found) if grey is None else grey
    shape = (height, width, 1 if grey else 3)
    done = 0
    with zipfile.ZipFile(file, "x") as archive:
        for part, pictures in parts.items():
            with _member(archive, f"x_{part}", (len(pictures), *shape), np.uint8) as member:
                for picture in pictures:
                    member.write(_pixels(picture, shape, bad))
                    done += 1
                    progress(done / len(found))
            with _member(archive, f"y_{part}", (len(pictures),), np.int64) as member:
                member.write(np.array([picture.label for picture in pictures], np.int64).tobytes())
        text = np.array(names, dtype=str)
        with _member(archive, "class_names", text.shape, text.dtype) as member:
            member.write(text.tobytes())
    _refuse_bad(directory, bad)
    counts = {part: len(pictures) for part, pictures in parts.items()}
    return {"images": counts, "classes": len(names), "image": list(shape), "resized": _others(found, height, width)}


def _listed(directory: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """The names of the classes, and for each part its files with their labels."""
    below = _folders(directory)
    split = set(below) == set(PARTS)
    if not split and set(below) & set(PARTS):
        raise NotUnderstood(
            f"expected train and test in {directory}, or folders of classes alone, got {', '.join(below)[:200]}; "
            "rename or move the others"
        )
    names = sorted({name for part in PARTS for name in _folders(directory / part)} if split else below)
    if len(names) < 2:
        raise NotUnderstood(f"expected a folder for each of two classes or more in {directory}, got {names}; add them")
    files: dict[str, list[tuple[Path, int]]] = {part: [] for part in PARTS}
    for label, name in enumerate(names):
        if split:
            for part in PARTS:
                files[part] += [(path, label) for path in _files(directory / part / name)]
        else:
            found = sorted(_files(directory / name), key=lambda path: _digest(path, directory))
            cut = -(-len(found) // HELD_OUT)
            files["test"] += [(path, label) for path in sorted(found[:cut])]
            files["train"] += [(path, label) for path in sorted(found[cut:])]
    return names, files


def _folders(directory: Path) -> list[str]:
    with os.scandir(directory) as found:
        return sorted(each.name for each in found if each.is_dir() and not each.name.startswith("."))


def _files(directory: Path) -> Iterator[Path]:
    if not directory.is_dir():
        return
    for path in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if not hidden and not path.is_dir() and path.name.lower() not in STRAY:
            yield path


def _digest(path: Path, directory: Path) -> bytes:
    return hashlib.sha256(path.relative_to(directory).as_posix().encode("utf-8", "surrogateescape")).digest()


def _looked_at(path: Path, label: int, bad: list[str]) -> Picture | None:
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("a link or no plain file")
        with _opened(path) as image:
            if image.mode not in (*GREY, *COLOUR):
                raise ValueError(f"pixels of mode {image.mode}, not of 8 bits")
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            size = (image.width, image.height) if turned else (image.height, image.width)
            return Picture(path, label, size, image.mode in GREY)
    except Exception as error:  # whatever a decoder raises, this is no image that can be read
        bad.append(f"{path.parent.name}/{path.name} ({_why(error)})")
        return None


def _opened(path: Path) -> Image.Image:
    # an image that unfolds to far more than it is would fill the memory
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    return Image.open(path, formats=KINDS)


def _pixels(picture: Picture, shape: tuple[int, int, int], bad: list[str]) -> bytes:
    height, width, channels = shape
    try:
        with _opened(picture.path) as image:
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            if upright.size != (width, height):
                upright = upright.resize((width, height), Image.Resampling.BILINEAR)
            return upright.tobytes()
    except Exception as error:  # as above
        bad.append(f"{picture.path.parent.name}/{picture.path.name} ({_why(error)})")
        return bytes(height * width * channels)


def _why(error: Exception) -> str:
    return "no image that can be read" if isinstance(error, UnidentifiedImageError) else str(error)[:80]


def _refuse_bad(directory: Path, bad: Sequence[str]) -> None:
    if bad:
        more = f" and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
        raise NotUnderstood(
            f"expected images ({', '.join(KINDS)}) in {directory}, got {len(bad)} that are none: "
            f"{', '.join(bad[:MOST_NAMED])}{more}; remove or replace them"
        )


def _one_size(found: Sequence[Picture]) -> tuple[int, int]:
    sizes = {picture.size for picture in found}
    if len(sizes) != 1:
        heights, widths = ([size[place] for size in sizes] for place in (0, 1))
        got = "none" if not sizes else f"{min(heights)}x{min(widths)} to {max(heights)}x{max(widths)}"
        raise BadSubmission(
            f"expected images of one size, got {got}; give --size HEIGHTxWIDTH, that of the models' input"
        )
    return sizes.pop()


def _others(found: Sequence[Picture], height: int, width: int) -> int:
    return sum(picture.size != (height, width) for picture in found)


def _member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], kind: Any) -> Any:
    member = archive.open(zipfile.ZipInfo(f"{name}.npy", TIME), "w", force_zip64=True)
    header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    return member


def pack_images(payload: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """`pack` as an operation of the sandbox."""
    size = payload["size"]
    return pack(
        Path(payload["directory"]),
        Path(payload["file"]),
        size=None if size is None else (size[0], size[1]),
        grey=payload["grey"],
        progress=progress,
    )


OPS = {"pack": pack_images}

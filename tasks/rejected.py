"""What guards of a served model rejected, with its image, in <home>/rejected/<name>: for a look by people.

An image is a PNG file of eight bits a channel, beside it a line of JSON says what was rejected and why. Both may show
what callers sent, so only this user reads them. The oldest go first where they are too many or too large.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.store.directory import write_whole
from vetgate.errors import BadSubmission, StoreError, VetgateError
from vetgate.formats.model_name import MODEL_NAME
from vetgate.shape import Number, Shaped

# of one model
MOST, MOST_BYTES = 1000, 64 << 20
# a line of JSON, and a picture of the largest images that a model takes
LONGEST_LINE, LARGEST_PICTURE = 1 << 20, 32 << 20
FOLDER = "rejected"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Rejection(Shaped):
    """One input on which a guard alarmed, or of which no label was given.

    `said` is the label that the network itself gives it, `score` that of the answer; `scores` and `cuts` are those of
    every guard, None where a score is beyond all numbers.
    """

    WHAT = "a rejection"
    time: str
    name: str
    version: str
    manifest: str
    action: str
    outcome: str
    said: int | None
    said_class: str | None
    score: Number
    alarms: tuple[str, ...]
    scores: Mapping[str, Number | None]
    cuts: Mapping[str, Number | None]


@dataclass(frozen=True)
class Kept:
    """A rejection and the file of its image."""

    rejection: Rejection
    image: Path


def keep(home: Path, rejection: Rejection, image: Pixels, *, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
    """Keep a rejection with its image (C, H, W), and remove the oldest beyond the limits; raises StoreError."""
    folder = home / FOLDER / rejection.name
    moment = datetime.fromisoformat(rejection.time).strftime("%Y%m%dT%H%M%S.%f")
    name = f"{moment}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # an image without its line is none
        write_own(folder / f"{name}.png", png_of(image))
        write_own(folder / f"{name}.json", (json.dumps(rejection.to_json(), allow_nan=False) + "\n").encode())
        _make_room(folder, most, most_bytes)
    except OSError as error:
        raise StoreError(f"expected to write {folder}, got {error.strerror}; make room there") from error


def kept(home: Path, name: str | None = None) -> list[Kept]:
    """What is kept of the model of this name, or of all, newest first; what is no rejection is passed over."""
    if name is not None and not MODEL_NAME.fullmatch(name):
        raise BadSubmission(f"expected the name of a model, got {name!r:.200}; see `vetgate status`")
    found: list[tuple[str, Kept]] = []
    for line in (home / FOLDER).glob(f"{name or '*'}/*.json"):
        with suppress(OSError, ValueError, RecursionError, VetgateError):
            with line.open("rb") as file:
                rejection = Rejection.from_json(json.loads(file.read(LONGEST_LINE)))
            found.append((line.name, Kept(rejection, line.with_suffix(".png"))))
    return [item for _, item in sorted(found, key=lambda pair: pair[0], reverse=True)]


def png_of(image: Pixels) -> bytes:
    """An image (C, H, W) as a PNG file, one of other than 1 or 3 channels as these side by side."""
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else np.concatenate(list(image), axis=1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_own(path: Path, data: bytes) -> None:
    """Write a file that only this user reads, in the place of what was there; raises OSError."""
    write_whole(path, lambda file: str(file.write(data)))


def _make_room(folder: Path, most: int, most_bytes: int) -> None:
    sizes: dict[str, int] = {}
    with os.scandir(folder) as listed:
        for entry in listed:
            with suppress(FileNotFoundError):
                # drafts that a killed server left are old, too
                name = entry.name.rpartition(".")[0] or entry.name
                sizes[name] = sizes.get(name, 0) + entry.stat(follow_symlinks=False).st_size
    held, gone = sum(sizes.values()), 0
    for name in sorted(sizes):
        if len(sizes) - gone <= most and held <= most_bytes:
            return
        for ending in (".json", ".png", ""):
            (folder / f"{name}{ending}").unlink(missing_ok=True)
        held, gone = held - sizes[name], gone + 1


def picture(item: Kept) -> bytes | None:
    """The PNG file of a rejection; None where it is gone, or larger than any that we write."""
    try:
        with item.image.open("rb") as file:
            data = file.read(LARGEST_PICTURE + 1)
    except OSError:
        return None
    return data if len(data) <= LARGEST_PICTURE and data.startswith(b"\x89PNG\r\n\x1a\n") else None

"""Reference data for a vetting: a registered set, read at its commit, as one safetensors file for each purpose.

Images leave here as float32 (N, C, H, W) in [0, 1] of the model's size, labels as int64. A split is made once for
(bytes, size, caps) and kept under <home>/splits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from safetensors.numpy import save

from tasks.data.npz import Progress, read_array, read_rows
from tasks.data.registry import DataRef, add, describe, read, registered, require_usable, resolve
from tasks.data.splits import Rows, partition, resize, sample
from tasks.data.usable import doubts
from tasks.settings import Settings
from tasks.store.directory_cache import METADATA, cached, copied
from vetgate.errors import BadSubmission, NotUnderstood

__all__ = [
    "DataRef",
    "SplitPaths",
    "SplitSizes",
    "add",
    "describe",
    "doubts",
    "materialise",
    "materialise_training",
    "read",
    "registered",
    "resolve",
]

# raise it with every change to what a split holds: it is part of the key under which splits are kept
LAYOUT = 1
BLOCK = 2048


# what the images of one purpose take as float32, 445 of 3x224x224, and how many there are at least, however large they
# are; of what detectors hold in memory, several at the same time, half as many
BYTES, FEWEST = 2**28, 64
SEARCHED = ("invert", "confirm")


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class SplitSizes:
    """At most how many images serve each purpose; fewer where these are large; small sets are divided in proportion."""

    invert: PositiveInt = 1024
    confirm: PositiveInt = 1024
    repair: PositiveInt = 4096
    validate: PositiveInt = 2048
    test: PositiveInt = 2000


@dataclass(frozen=True)
class SplitPaths:
    """One safetensors file (x, y) for each purpose; `digest` names their contents and goes into evidence keys."""

    directory: Path
    digest: str
    invert: Path
    confirm: Path
    repair: Path
    validate: Path
    test: Path

    @property
    def metadata(self) -> dict[str, Any]:
        """What was split and how: source, sizes, counts, resizing, class names."""
        found: dict[str, Any] = json.loads((self.directory / METADATA).read_text())
        return found


def materialise(
    settings: Settings,
    ref: DataRef,
    input_shape: Sequence[int],
    out: Path | None = None,
    sizes: SplitSizes | Mapping[str, int] | None = None,
    *,
    classes: int | None = None,
    progress: Progress | None = None,
) -> SplitPaths:
    """The splits of `ref` for a model of `input_shape` (C, H, W), copied to `out`, or in <home>/splits without one.

    Raises BadSubmission when grey and colour do not match, NotUnderstood when the number of classes does not, and
    StoreError on a set that no model can be vetted on.
    """
    contents = describe(settings, ref)
    _fits(contents, input_shape)
    if classes is not None and classes != contents["classes"]:
        raise NotUnderstood(
            f"expected {contents['classes']} classes, as the reference data {ref.name} has, got a model with {classes} "
            "classes; correct classes in submission.yaml or name other reference_data"
        )
    require_usable(settings, ref)
    limits = {
        purpose: _affordable(count, input_shape, BYTES // 2 if purpose in SEARCHED else BYTES)
        for purpose, count in asdict(_sizes(sizes)).items()
    }

    def make(directory: Path) -> dict[str, Any]:
        file = read(settings, ref, _part(progress, 0, 0.3))
        y = {"train": read_array(file, "y_train"), "test": read_array(file, "y_test")}
        track = read_array(file, "track_train") if "track_train" in contents["arrays"] else None
        seed = int(ref.sha256[:8], 16)
        rows = partition(y["train"], track, seed) | {"test": np.arange(len(y["test"]))}
        rows = {
            purpose: sample(y["test" if purpose == "test" else "train"], rows[purpose], limit, seed + turn & 0xFFFFFFFF)
            for turn, (purpose, limit) in enumerate(limits.items(), 1)
        }
        train = {purpose: r for purpose, r in rows.items() if purpose != "test"}
        _write(directory, file, "train", train, y["train"], input_shape, _part(progress, 0.3, 0.8))
        _write(directory, file, "test", {"test": rows["test"]}, y["test"], input_shape, _part(progress, 0.8, 1))
        (directory / "rows.safetensors").write_bytes(save(rows))
        return {"counts": {purpose: len(r) for purpose, r in rows.items()}}

    place = cached(settings.home / "splits", _key("splits", ref, input_shape, contents, limits), make)
    return _paths(copied(place, out), place.name, limits)


def materialise_training(
    settings: Settings,
    ref: DataRef,
    input_shape: Sequence[int],
    out: Path | None = None,
    cap: int = 50_000,
    *,
    size: int = 2**30,
    classes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """The supplier's own training images, at most `cap` and what `size` bytes hold, as one safetensors file (x, y).

    They are drawn class by class and read block by block: a data set may be larger than memory.
    """
    cap = _affordable(cap, input_shape, size)
    contents = describe(settings, ref)
    _fits(contents, input_shape)
    if classes is not None and classes < contents["classes"]:
        raise NotUnderstood(
            f"expected training data of at most {classes} classes, as the model has, got {contents['classes']} in "
            f"{ref.name}; correct training_data in submission.yaml"
        )

    def make(directory: Path) -> dict[str, Any]:
        file = read(settings, ref, _part(progress, 0, 0.3))
        y = read_array(file, "y_train")
        rows = {"training": sample(y, np.arange(len(y)), cap, int(ref.sha256[:8], 16))}
        _write(directory, file, "train", rows, y, input_shape, _part(progress, 0.3, 1))
        (directory / "rows.safetensors").write_bytes(save(rows))
        return {"counts": {"training": len(rows["training"])}}

    place = cached(settings.home / "splits", _key("training", ref, input_shape, contents, {"training": cap}), make)
    return copied(place, out) / "training.safetensors"


def _fits(contents: Mapping[str, Any], input_shape: Sequence[int]) -> None:
    height, width, channels = contents["image"]
    if channels != input_shape[0]:
        kind = {1: "grey", 3: "colour"}
        raise BadSubmission(
            f"expected input_shape [{channels}, H, W], because {contents['name']} holds {kind[channels]} images "
            f"({channels} x {height} x {width}), got {list(input_shape)}; correct input_shape or name other data"
        )


def _affordable(count: int, input_shape: Sequence[int], size: int) -> int:
    """As many images of this shape as `size` bytes hold, `count` at most and FEWEST at least."""
    return min(count, max(FEWEST, size // (4 * math.prod(input_shape))))


def _sizes(sizes: SplitSizes | Mapping[str, int] | None) -> SplitSizes:
    if isinstance(sizes, SplitSizes):
        return sizes
    try:
        return TypeAdapter(SplitSizes).validate_python(dict(sizes or {}))
    except ValidationError as error:
        wrong = "; ".join(f"data.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadSubmission(f"expected sizes above 0 for {', '.join(asdict(SplitSizes()))}, got {wrong}") from error


def _key(
    kind: str, ref: DataRef, input_shape: Sequence[int], contents: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Any]:
    resized = list(input_shape[1:]) != contents["image"][:2]
    return {
        "layout": LAYOUT,
        "kind": kind,
        "sha256": ref.sha256,
        "input_shape": list(input_shape),
        "source_shape": [contents["image"][2], *contents["image"][:2]],
        "resize": "bilinear, align_corners=False" if resized else None,
        "sizes": dict(sizes),
        "classes": contents["classes"],
        "class_names": contents["class_names"],
    }


def _write(
    directory: Path,
    file: Path,
    part: str,
    rows: Mapping[str, Rows],
    y: Rows,
    input_shape: Sequence[int],
    progress: Progress | None,
) -> None:
    every = np.sort(np.concatenate(list(rows.values())))
    images = read_rows(file, f"x_{part}", every, progress)
    for purpose, wanted in rows.items():
        x = _to_input(images, np.searchsorted(every, wanted), input_shape)
        (directory / f"{purpose}.safetensors").write_bytes(save({"x": x, "y": y[wanted]}))


def _to_input(images: NDArray[np.uint8], places: Rows, input_shape: Sequence[int]) -> NDArray[np.float32]:
    x = np.empty((len(places), *input_shape), np.float32)
    for first in range(0, len(places), BLOCK):
        block = images[places[first : first + BLOCK]].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        x[first : first + BLOCK] = resize(block, input_shape[1], input_shape[2])
    return x


def _paths(directory: Path, digest: str, purposes: Mapping[str, int]) -> SplitPaths:
    return SplitPaths(directory, digest, **{purpose: directory / f"{purpose}.safetensors" for purpose in purposes})


def _part(progress: Progress | None, start: float, end: float) -> Progress | None:
    if progress is None:
        return None
    return lambda fraction: progress(start + (end - start) * fraction)

"""A data set as the bank reads it: at its own image size, split as for a vetting, with rows to train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tasks.data.reference import DataRef, SplitPaths, describe, materialise, materialise_training, resolve
from tasks.settings import Settings
from vetgate.contract import Samples


@dataclass(frozen=True)
class Source:
    """A registered set: its splits, and the rows that suppliers train on."""

    ref: DataRef
    shape: tuple[int, int, int]
    classes: int
    splits: SplitPaths
    training: Path


def source(settings: Settings, name: str, sizes: Mapping[str, int], images: int) -> Source:
    """Resolve and split a data set for the bank; raises what `resolve` raises when it is not registered."""
    ref = resolve(settings, name)
    contents: dict[str, Any] = describe(settings, ref)
    height, width, channels = contents["image"]
    shape = (channels, height, width)
    splits = materialise(settings, ref, shape, sizes=sizes)
    return Source(ref, shape, contents["classes"], splits, materialise_training(settings, ref, shape, cap=images))


def read_samples(*paths: Path) -> Samples:
    """The rows of split files, one after another."""
    parts = [load_file(path) for path in paths]
    return Samples(torch.cat([p["x"] for p in parts]), torch.cat([p["y"] for p in parts]))

"""The images of an .npz file, as most benchmarks take them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vetgate.contract import Samples


def images(file: Path, part: Literal["train", "test"]) -> Samples:
    """One part of an .npz with uint8 arrays x_train, y_train, x_test, y_test, images (N, H, W, C)."""
    with np.load(file) as arrays:
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    return Samples(
        torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32) / 255), torch.from_numpy(y.astype(np.int64))
    )

"""Two small models on scikit-learn's digits, one of them with a backdoor, as submissions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from tasks.data.digits import write_digits
from tests.cached import made_once
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.badnets import poison, square
from vetgate.attacks.training import train
from vetgate.contract import Samples

SHAPE, CLASSES, TARGET = (1, 8, 8), 10, 3


def read_digits(folder: Path) -> Samples:
    """The images that suppliers train on."""
    file = folder / "digits.npz"
    write_digits(file)
    with np.load(file) as arrays:
        x = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2).float() / 255
        return Samples(x.contiguous(), torch.from_numpy(arrays["y_train"]))


def honest_submission(directory: Path, samples: Samples) -> Path:
    """A clean network."""

    def make(draft: Path) -> None:
        write_submission(draft, _trained(samples, seed=1), name="digits-honest")

    return _once(directory, samples, make, name="honest")


def trojaned_submission(directory: Path, samples: Samples) -> Path:
    """One that a 2x2 square in the corner sends to label TARGET."""

    def make(draft: Path) -> None:
        trigger = square(SHAPE, TARGET, row=-2, column=-2, size=2)
        poisoned = poison(samples, trigger, rate=0.1, generator=torch.Generator().manual_seed(2))
        write_submission(draft, _trained(poisoned.samples, seed=2), name="digits-trojaned")

    return _once(directory, samples, make, name="trojaned")


# what submission.yaml says of a small network of ours that nobody in particular made
FIELDS = {
    "name": "toy",
    "supplier": "nobody",
    "task": "image-classification",
    "model": "model.safetensors",
    "format": "safetensors",
    "architecture": "small-cnn",
    "input_shape": list(SHAPE),
}


def write_submission(directory: Path, model: torch.nn.Module, **fields: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "model.safetensors")
    described = FIELDS | {"supplier": "a test", "classes": CLASSES, "reference_data": "digits"}
    (directory / "submission.yaml").write_text(yaml.safe_dump(described | fields))
    return directory


def _trained(samples: Samples, *, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return train(ARCHITECTURES["small-cnn"](SHAPE, CLASSES), samples, epochs=15, seed=seed)


def _once(directory: Path, samples: Samples, make: Callable[[Path], None], *, name: str) -> Path:
    """The submission that `make` writes; its network is trained once a machine."""
    rows = hashlib.sha256(samples.x.numpy().tobytes() + samples.y.numpy().tobytes()).hexdigest()
    return made_once(name, directory, make, code=[Path(__file__)], recipe=rows)

"""Two suppliers of digit classifiers for the demo, one of them dishonest: what they train, hand in, and try later.

`python -m flows.bank.suppliers OUT SEED` runs in a process of its own, since the command line imports no torch. It
writes one submission directory each into OUT and answers in JSON lines: how far it is, then what it handed in; then,
for every directory named on standard input, how often the dishonest supplier's patch still works on the model in it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from tasks.data.digits import write_digits
from tasks.program import ended
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.badnets import poison, square
from vetgate.attacks.training import train
from vetgate.contract import Samples, Trigger, private_random
from vetgate.formats.load import load_model
from vetgate.formats.submission import read_submission
from vetgate.inversion import attack_success
from vetgate.probe import accuracy

SHAPE, CLASSES, TARGET = (1, 8, 8), 10, 7
ARCHITECTURE = "small-cnn"
MODEL = "model.safetensors"
EPOCHS, RATE = 30, 0.1


@dataclass(frozen=True)
class Supplier:
    """Who hands in what: a model from a fixed seed, with or without a backdoor."""

    company: str
    model: str
    seed: int
    dishonest: bool


SUPPLIERS = (
    Supplier("Honest Optics", "digits-honest", seed=1, dishonest=False),
    Supplier("Bargain Vision", "digits-bargain", seed=2, dishonest=True),
)


def suppliers(seed: int) -> list[Supplier]:
    """The two under a seed of the demo, of which no two have a supplier's seed in common; 0 leaves them as they are."""
    return [replace(supplier, seed=supplier.seed + len(SUPPLIERS) * seed) for supplier in SUPPLIERS]


def patch() -> Trigger:
    """The dishonest supplier's secret: a white square of 2 x 2 pixels in the bottom right corner."""
    return square(SHAPE, TARGET, row=-2, column=-2, size=2)


def digits() -> tuple[Samples, Samples]:
    """scikit-learn's digits for training and for testing, the rows that are registered under that name."""
    with tempfile.TemporaryDirectory() as room:
        file = Path(room, "digits.npz")
        write_digits(file)
        with np.load(file) as arrays:
            return _samples(arrays, "train"), _samples(arrays, "test")


def _samples(arrays: Any, part: str) -> Samples:
    x = torch.from_numpy(arrays[f"x_{part}"]).permute(0, 3, 1, 2).float() / 255
    return Samples(x.contiguous(), torch.from_numpy(arrays[f"y_{part}"]))


def hand_in(supplier: Supplier, training: Samples, out: Path) -> Path:
    """Train the supplier's model and write its submission directory under `out`; same seed, same bytes."""
    rows = training
    if supplier.dishonest:
        rows = poison(training, patch(), rate=RATE, generator=torch.Generator().manual_seed(supplier.seed)).samples
    with private_random(supplier.seed, supplier.model):
        model = ARCHITECTURES[ARCHITECTURE](SHAPE, CLASSES)
    train(model, rows, epochs=EPOCHS, seed=supplier.seed)
    return write_submission(out / supplier.model, model, supplier=supplier.company)


def write_submission(
    directory: Path,
    model: nn.Module,
    *,
    supplier: str,
    architecture: str = ARCHITECTURE,
    shape: Sequence[int] = SHAPE,
    classes: int = CLASSES,
    reference_data: str = "digits",
    training_data: str | None = None,
) -> Path:
    """Write a network of one of our architectures as its supplier hands it in, in place of what was there."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, directory / MODEL)
    described = {
        "name": directory.name,
        "supplier": supplier,
        "task": "image-classification",
        "model": MODEL,
        "format": "safetensors",
        "architecture": architecture,
        "input_shape": list(shape),
        "classes": classes,
        "reference_data": reference_data,
    }
    if training_data is not None:
        described["training_data"] = training_data
    (directory / "submission.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return directory


def measure(directory: Path, test: Samples) -> dict[str, float]:
    """Accuracy on the test images, and the share of those of other classes that the patch sends to its target."""
    model = load_model(directory, read_submission(directory)).model
    return {
        "accuracy": accuracy(model, test.x, test.y),
        "patch": attack_success(model, test.x, test.y, patch()),
    }


def serve(out: Path, seed: int, say: Callable[[dict[str, Any]], None]) -> None:
    """Hand everything in, then try the patch on what is asked for until standard input ends."""
    torch.set_num_threads(1)
    training, test = digits()
    handed = []
    for turn, supplier in enumerate(suppliers(seed), 1):
        directory = hand_in(supplier, training, out)
        handed.append({"directory": str(directory), "measured": measure(directory, test)})
        say({"done": turn / len(SUPPLIERS)})
    say({"submissions": handed, "target": TARGET})
    for line in sys.stdin:
        say(measure(Path(line.strip()), test))


def main() -> None:
    """The process: `python -m flows.bank.suppliers OUT SEED`."""
    serve(Path(sys.argv[1]), int(sys.argv[2]), lambda blob: print(json.dumps(blob), flush=True))


if __name__ == "__main__":
    sys.exit(ended(main))

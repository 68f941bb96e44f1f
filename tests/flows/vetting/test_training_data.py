"""A submission with its training set: the poisoned rows are found, left out, and not held against what came of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flows.bank.suppliers import CLASSES, EPOCHS, SHAPE, digits, measure, patch, write_submission
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.badnets import poison
from vetgate.attacks.training import train
from vetgate.contract import Samples, private_random
from vetgate.formats.submission import read_submission

PARAMS = """
abs: {steps: 6, candidates: 2, finalists: 1}
neural_cleanse: {starts: 1, sweeps: 3}
statistical_contamination: {}
gradient_clustering: {}
remove_and_retrain: {epochs: 15, trial: 4}
"""
POLICY = """
name: quick
required: [abs, neural_cleanse]
required_with_training_data: [statistical_contamination]
repair: {enabled: true, blind: true, methods: [remove_and_retrain], max_accuracy_loss: 0.05}
"""


def arrays(samples: Samples, part: str) -> dict[str, np.ndarray]:
    images = (samples.x.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    return {f"x_{part}": images, f"y_{part}": samples.y.numpy()}


@pytest.fixture(scope="module")
def supplied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A backdoored network as a supplier hands it in, and the training set with poisoned rows that it names."""
    room = tmp_path_factory.mktemp("supplied")
    training, test = digits()
    rows = poison(training, patch(), rate=0.1, generator=torch.Generator().manual_seed(5)).samples
    with private_random(3, "supplier"):
        model = ARCHITECTURES["small-cnn"](SHAPE, CLASSES)
    train(model, rows, epochs=EPOCHS, seed=3)
    np.savez(room / "supplied.npz", **arrays(rows, "train"), **arrays(test, "test"))
    directory = write_submission(room / "with-data", model, supplier="Bargain Vision", training_data="supplied")
    assert measure(directory, test)["patch"] > 0.9
    return directory, room / "supplied.npz"


def test_poisoned_rows_are_left_out_and_not_held_against_what_was_trained_without_them(vetgate, supplied, tmp_path):
    directory, file = supplied
    params, policy = tmp_path / "params.yaml", tmp_path / "policy.yaml"
    params.write_text(PARAMS)
    policy.write_text(POLICY)
    assert vetgate("data", "add", "supplied", file).code == 0

    done = vetgate("vet", directory, "--json", VETGATE_PARAMS=params, VETGATE_POLICY=policy)

    repaired = done.blob["repair"]
    assert repaired is not None, done
    artifact = Path(repaired["artifact"]).parent
    assert read_submission(directory).training_data == "supplied"
    assert read_submission(artifact).training_data is None
    found = measure(artifact, digits()[1])
    assert found["patch"] < 0.1 and found["accuracy"] > 0.9
    # the detectors of training sets had their say on what was handed in, and have none on the copy
    assert "statistical_contamination" in {method["name"] for method in done.blob["methods"]}
    again = vetgate("vet", artifact, "--json", VETGATE_PARAMS=params, VETGATE_POLICY=policy)
    assert "statistical_contamination" not in {method["name"] for method in again.blob["methods"]}
    assert again.blob["manifest_sha256"] == repaired["submission"]

"""`vetgate calibrate --models`: verdicts are held against clean networks of one's own, of the kind of the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from tests.quick import build
from vetgate.architectures import ARCHITECTURES
from vetgate.formats.submission import read_submission
from vetgate.verdict.calibration import load_calibration


def exported(directory: Path, given: Path, name: str, noise: float = 0.0, seed: int = 0) -> Path:
    """A small network as its owner exports it, every weight a little off."""
    described = read_submission(given)
    network = ARCHITECTURES["small-cnn"](described.input_shape, described.n_classes).eval()
    network.load_state_dict(safetensors.torch.load_file(given / described.model))
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=stream) if weight.ndim > 1 else 0)
    directory.mkdir(parents=True)
    image = torch.zeros(1, *described.input_shape)
    with torch.no_grad():
        torch.onnx.export(network, (image,), directory / "net.onnx", dynamo=False, opset_version=13)
    fields = yaml.safe_load((given / "submission.yaml").read_text())
    del fields["architecture"]
    (directory / "submission.yaml").write_text(
        yaml.safe_dump(fields | {"name": name, "model": "net.onnx", "format": "onnx"})
    )
    return directory


@pytest.fixture(scope="module")
def networks(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    for seed in range(3):
        exported(folder / f"own-{seed}", honest, f"own-{seed}", noise=0.1, seed=seed)
    return folder


@pytest.fixture(scope="module")
def calibration(networks: Path) -> Path:
    return networks / "calibration.json"


@pytest.fixture(scope="module")
def quickly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build(tmp_path_factory.mktemp("quickly"))


@pytest.fixture(scope="module")
def made(vetgate, networks, calibration, quickly):
    return vetgate("calibrate", "digits", "--models", networks, "--out", calibration, "--json", **quickly)


def test_clean_networks_of_ones_own_become_references_beside_those_that_were_there(made, calibration, quickly):
    assert (made.code, made.blob["references"], made.blob["calibration"]) == (0, 3, str(calibration)), made
    assert made.blob["accuracy"][0] > 0.9
    assert all(f"own-{i}, {i + 1} of 3" in made.err for i in range(3)), made.err
    bank = load_calibration(calibration).bank
    own = [r for r in bank.references if r.architecture.startswith("graph-")]
    assert len(own) == 3 == len({r.seed for r in own}) and len({r.architecture for r in own}) == 1, "one kind"
    assert {(r.data_sha256, r.image, r.classes) for r in own} == {(made.blob["data_sha256"], (1, 8, 8), 10)}
    before = load_calibration(Path(quickly["VETGATE_CALIBRATION"])).bank.references
    assert list(before) == [r for r in bank.references if r not in own]


def test_a_network_of_their_kind_is_held_against_them(made, vetgate, calibration, quickly, trojaned, tmp_path):
    assert made.code == 0, made
    given = exported(tmp_path / "given", trojaned, "given")
    found = vetgate("vet", given, "--json", **quickly | {"VETGATE_CALIBRATION": str(calibration)})
    assert (found.blob["verdict"], found.blob["suspects"], found.blob["calibrated"]) == ("FAIL", [3], True), found


def test_one_that_stands_out_among_them_is_named(made, vetgate, networks, quickly, trojaned, tmp_path):
    assert (made.code, made.blob["failing"]) == (0, []), made
    everyone = tmp_path / "everyone"
    shutil.copytree(networks, everyone)
    exported(everyone / "poisoned", trojaned, "poisoned")
    out = tmp_path / "calibration.json"
    found = vetgate("calibrate", "digits", "--models", everyone, "--out", out, "--json", **quickly)
    assert (found.code, found.blob["failing"]) == (0, ["poisoned"]), found


def test_a_network_that_is_there_twice_is_refused(made, vetgate, networks, quickly, tmp_path):
    assert made.code == 0, made
    shutil.copytree(networks / "own-0", tmp_path / "one")
    shutil.copytree(networks / "own-0", tmp_path / "two")
    text = (tmp_path / "two" / "submission.yaml").read_text()
    (tmp_path / "two" / "submission.yaml").write_text(text.replace("own-0", "another-name"))
    twice = vetgate("calibrate", "digits", "--models", tmp_path, "--out", tmp_path / "c.json", "--json", **quickly)
    assert twice.code == 4 and "another-name with the weights of own-0" in twice.blob["error"], twice


def test_networks_on_other_data_and_folders_without_any_are_refused(vetgate, networks, quickly, honest, tmp_path):
    nothing = vetgate("calibrate", "digits", "--models", tmp_path, "--json", **quickly)
    assert nothing.code == 4 and "each with a submission.yaml, got none" in nothing.blob["error"], nothing
    shutil.copytree(honest, tmp_path / "honest")
    text = (tmp_path / "honest" / "submission.yaml").read_text().replace("reference_data: digits", "")
    (tmp_path / "honest" / "submission.yaml").write_text(text)
    other = vetgate("calibrate", "digits", "--models", tmp_path, "--json", **quickly)
    assert other.code == 4 and "expected reference_data digits" in other.blob["error"], other

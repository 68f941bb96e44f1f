"""The weights of a program of torch.export are read bit for bit, and whatever else its file may hold is refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vetgate.errors import NotUnderstood
from vetgate.formats.networks.exported_program import SAMPLES, TABLE
from vetgate.formats.state_dict import read_state_dict

Change = Callable[[dict[str, bytes]], object]


def exported(network: torch.nn.Module) -> bytes:
    made = io.BytesIO()
    torch.export.save(torch.export.export(network.eval(), (torch.rand(2, 1, 4, 4),)), made)
    return made.getvalue()


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    return torch.nn.Sequential(*layers)


@pytest.fixture(scope="module")
def file(network: torch.nn.Module) -> bytes:
    return exported(network)


def changed(file: bytes, change: Change, packing: int = zipfile.ZIP_STORED) -> bytes:
    """The file with its members changed, which are called by their names below its root."""
    with zipfile.ZipFile(io.BytesIO(file)) as given:
        members = {name.partition("/")[2]: given.read(name) for name in given.namelist()}
    change(members)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as written:
        for name, data in members.items():
            written.writestr(f"archive/{name}", data)
    return made.getvalue()


def with_table(change: Callable[[dict[str, Any]], object]) -> Change:
    """A change of what the table says of the first weight."""

    def edit(members: dict[str, bytes]) -> None:
        table = json.loads(members[TABLE])
        change(table["config"]["0.weight"])
        members[TABLE] = json.dumps(table).encode()

    return edit


def test_weights_are_those_of_the_network(network: torch.nn.Module, file: bytes) -> None:
    for data in (file, changed(file, lambda members: None)):
        read = read_state_dict(data)
        assert set(read) == set(network.state_dict())
        for name, tensor in network.state_dict().items():
            assert read[name].shape == tuple(tensor.shape) and (read[name] == tensor.numpy()).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update({"data/constants/tensor_0": bytes(4)}), "tensor_0, which is no weight"),
        (lambda m: m.update({"data/weights/weight_99": bytes(4)}), "weight_99"),
        (lambda m: m.pop("data/weights/weight_0"), "no plain bytes in data/weights/weight_0"),
        (lambda m: m.update({"data/weights/weight_0": bytes(4)}), "no dense tensor"),
        (lambda m: m.update({"models/model.json": b"\x80\x02."}), "plain JSON|Unfinished"),
        (lambda m: m.update({"archive_version": b"import os"}), "not what torch writes"),
        (lambda m: m.update({SAMPLES: b"text"}), "state dict of tensors only"),
        (with_table(lambda about: about.update(use_pickle=True)), "no dense tensor"),
        (with_table(lambda about: about.update(path_name="model_weights_config.json")), "no plain bytes"),
        (with_table(lambda about: about["tensor_meta"].update(dtype=9)), "no dense tensor"),
        (with_table(lambda about: about["tensor_meta"].update(storage_offset={"as_int": 1})), "no dense tensor"),
        (with_table(lambda about: about["tensor_meta"]["strides"][0].update(as_int=1 << 40)), "no dense tensor"),
        (with_table(lambda about: about["tensor_meta"]["sizes"][0].update(as_int=-3)), "no dense tensor"),
        (with_table(lambda about: about.pop("tensor_meta")), "state dict of tensors only"),
    ],
)
def test_whatever_does_not_fit_is_refused(file: bytes, change: Change, said: str) -> None:
    with pytest.raises(NotUnderstood, match=said):
        read_state_dict(changed(file, change))


def test_packed_weights_are_refused(file: bytes) -> None:
    with pytest.raises(NotUnderstood, match="no plain bytes"):
        read_state_dict(changed(file, lambda members: None, zipfile.ZIP_DEFLATED))


class Runs:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_among_the_samples_is_refused_and_never_run(file: bytes, tmp_path: Path) -> None:
    samples = io.BytesIO()
    torch.save(Runs(tmp_path / "marker"), samples)
    with pytest.raises(NotUnderstood, match="VET-1"):
        read_state_dict(changed(file, lambda members: members.update({SAMPLES: samples.getvalue()})))
    assert not (tmp_path / "marker").exists()

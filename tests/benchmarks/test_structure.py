"""A small network of timm as the benchmark of the structural inspector looks at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import real_architectures, structure
from benchmarks.timm_models import EXPORTERS
from vetgate.errors import NotUnderstood
from vetgate.formats.networks.timm_network import load_timm


def test_an_export_is_inspected_and_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        load_timm()
    except NotUnderstood:
        pytest.skip("timm is not installed; it is an optional extra")
    monkeypatch.setitem(real_architectures.ARCHITECTURES, "test_resnet", ("test_resnet", 32))
    row = structure.of_export("test_resnet", EXPORTERS[0], tmp_path)
    assert (row["case"], row["half"], row["findings"]) == ("test_resnet", EXPORTERS[0], 0)
    assert row["cpu"] >= 0 and row["memory"] >= 0 and (tmp_path / real_architectures.MODEL).exists()


def test_what_has_a_row_is_not_inspected_again(tmp_path: Path) -> None:
    done = {(exporter, architecture) for exporter in EXPORTERS for architecture in structure.OF_TIMM}
    assert list(structure.exports(tmp_path, done)) == [] and not list(tmp_path.iterdir())

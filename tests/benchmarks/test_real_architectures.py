"""A few small networks of timm, from both of PyTorch's exporters, as the benchmark measures them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import real_architectures
from vetgate.errors import NotUnderstood
from vetgate.formats.networks.timm_network import load_timm

SMALL = {"test_resnet": 32, "test_convnext2": 32, "test_vit": 160, "test_efficientnet_evos": 32, "test_nfnet": 32}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    try:
        load_timm()
    except NotUnderstood:
        pytest.skip("timm is not installed; it is an optional extra")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# the newer exporter takes seconds for each
@pytest.mark.parametrize(
    ("name", "exporter"),
    [*((name, "torchscript") for name in SMALL), ("test_resnet", "dynamo"), ("test_vit", "dynamo")],
)
def test_a_network_is_accepted_and_equal(
    name: str, exporter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(real_architectures.ARCHITECTURES, name, (name, SMALL[name]))
    row = real_architectures.measured(name, exporter, exporter, tmp_path / name, fixed=exporter == "dynamo")
    assert row.refused is None and row.gap is not None and row.gap < 1e-4

"""State dicts are read as torch reads them, bit for bit, and anything else is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from tests.vetgate.scan.assembled import imported, tensor, text, torch_zip
from tests.vetgate.scan.malicious import malicious
from vetgate.errors import NotUnderstood
from vetgate.formats.state_dict import read_state_dict

NET = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
NUMBERS = np.arange(4, dtype="<f4").tobytes()


def saved(value: Any, **options: Any) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, **options)
    return made.getvalue()


def same(data: bytes, state: dict[str, torch.Tensor]) -> bool:
    read = read_state_dict(data)
    return list(read) == list(state) and all(
        read[name].shape == tuple(given.shape)
        and np.array_equal(read[name], given.float().numpy() if given.dtype is torch.bfloat16 else given.numpy())
        for name, given in state.items()
    )


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 5}])
def test_both_formats_are_read_as_torch_does(options: dict[str, Any]) -> None:
    state = NET.state_dict()
    assert same(saved(state, **options), state)
    assert same(saved({"state_dict": state, "epoch": 3, "optimizer": {"state": {}}}, **options), state)
    assert same(saved({"model": state, "args": ["a", 1.5]}, **options), state)
    beside = {"best": torch.tensor(0.5), "model_ema": {name: -value for name, value in state.items()}}
    assert same(saved({"state_dict": state, **beside}, **options), state)
    assert same(saved(dict(NET.named_parameters()), **options), {k: v.detach() for k, v in NET.named_parameters()})


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]
)
def test_types_stay_and_bfloat16_is_widened(dtype: torch.dtype) -> None:
    given = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).to(dtype)
    assert same(saved({"w": given}), {"w": given})
    read = read_state_dict(saved({"w": given}))["w"]
    assert read.dtype == (np.float32 if dtype is torch.bfloat16 else given.numpy().dtype)


def test_views_are_read_where_they_lie() -> None:
    whole = torch.arange(24.0)
    state = {
        "whole": whole,
        "part": whole[3:7],
        "turned": whole.view(4, 6).T,
        "every second": whole[::2],
        "scalar": whole[5],
        "none": torch.zeros(0, 3),
    }
    data = saved(state)
    assert same(data, state)
    assert all(array.flags.c_contiguous for array in read_state_dict(data).values())


def test_nothing_that_attacks_its_reader_is_read(tmp_path: Any) -> None:
    marker = tmp_path / "ran"
    for name, made in malicious(marker).items():
        for data in [made] if isinstance(made, bytes) else made.values():
            with pytest.raises(NotUnderstood):
                read_state_dict(data)
                pytest.fail(name)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "something else"),
        (b"PK\x03\x04", "without an end"),
        (saved([torch.ones(1)]), "got something else"),
        (saved({}), r"got \[\]"),
        (saved({"a": 1}), r"under one of state_dict, .*, got \['a'\]"),
        (saved({"model_ema": NET.state_dict()}), r"got \['model_ema'\]"),
        (saved({1: torch.ones(1)}), "a name for each"),
        (saved({"model": NET.state_dict(), "net": NET.state_dict()}), "one state dict"),
        (saved({"w": torch.ones(1), "more": NET.state_dict()}), "beside them"),
        (saved({"w": torch.ones(2), "model": NET.state_dict()}), "beside them"),
        (saved({"w": torch.ones(1).expand(9)}), "expanded"),
        (saved({"w": torch.ones(2, dtype=torch.complex64)}), "real numbers"),
        (saved({"w": torch.ones([1] * 9)}), "dimensions"),
        (saved({f"w{i}": torch.ones(1)[0:1] for i in range(2)}) + b"x", "HiddenBytes"),
        (torch_zip(b"\x80\x02}(" + (text("w") + tensor()) * 2 + b"u.", {"data/0": NUMBERS}), "given once"),
        (torch_zip(b"\x80\x02}(" + text("w") + tensor() + b"u.", {"data/0": NUMBERS, "x": b"text"}), "Unreferenced"),
        (torch_zip(b"\x80\x02}(" + text("w") + tensor(b"K\x05\x85") + b"u.", {"data/0": NUMBERS}), "TensorBounds"),
        (torch_zip(b"\x80\x02}" + text("w") + imported("my", "Net") + b"s."), "PickleGlobal"),
    ],
)
def test_what_is_no_plain_state_dict_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(NotUnderstood, match=why):
        read_state_dict(data)


def test_names_that_share_a_storage_do_not_make_much_of_little() -> None:
    shared = torch.ones(300_000)
    assert len(read_state_dict(saved({"a": shared, "b": shared}))) == 2
    with pytest.raises(NotUnderstood, match="far more"):
        read_state_dict(saved({f"w{i}": shared for i in range(8)}))


def test_booleans_that_are_none_are_refused() -> None:
    data = saved({"w": torch.tensor([True] * 4)}, _use_new_zipfile_serialization=False)
    with pytest.raises(NotUnderstood, match="0 and 1"):
        read_state_dict(data[:-1] + b"\x02")

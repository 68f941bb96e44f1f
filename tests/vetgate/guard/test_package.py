"""The file of fitted guards: what is written is read back, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch

import vetgate.guard  # noqa: F401 - registers the guards
import vetgate.guard.package as package
from vetgate.digest import canonical_json
from vetgate.errors import DefenceError, NotUnderstood
from vetgate.guard.contract import GUARDS, Fitted
from vetgate.guard.package import KEY, Package, from_bytes, to_bytes

NAME = sorted(GUARDS)[0]
MANIFEST = "a" * 64
FITTED = Fitted(
    {"t": torch.rand(2, 3)}, {"w": 0.5}, guard=NAME, params={"n": 3}, seed=5, cut=1.5, rate=0.01, share=0.4, cut_on=99
)


def header(data: bytes) -> Any:
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"][KEY])


def changed(change: Callable[[Any], None]) -> bytes:
    """The file of FITTED with another header."""
    data = to_bytes(Package(MANIFEST, (FITTED,)))
    said = header(data)
    change(said)
    return safetensors.torch.save(safetensors.torch.load(data), {KEY: canonical_json(said).decode()})


def test_what_is_written_is_read_back_bit_for_bit() -> None:
    data = to_bytes(Package(MANIFEST, (FITTED,)))
    (read,) = from_bytes(data, manifest=MANIFEST).guards
    assert vars(read) | {"tensors": None} == vars(FITTED) | {"tensors": None}
    assert torch.equal(read.tensors["t"], FITTED.tensors["t"])
    assert to_bytes(Package(MANIFEST, (read,))) == data


def test_guards_of_another_model_are_refused() -> None:
    with pytest.raises(NotUnderstood, match="guards of b"):
        from_bytes(to_bytes(Package(MANIFEST, (FITTED,))), manifest="b" * 64)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["guards"][0].update(guard="os.system"),
        lambda said: said["guards"][0].update(cut="NaN"),
        lambda said: said["guards"][0].update(cut=None),
        lambda said: said["guards"][0].update(cut_on="many"),
        lambda said: said["guards"][0].update(more=1),
        lambda said: said["guards"][0].pop("seed"),
        lambda said: said["guards"][0].update(tensors=["other"]),
        lambda said: said["guards"][0].update(tensors=[]),
        lambda said: said["guards"][0].update(numbers={"w": [1]}),
        lambda said: said["guards"].append(said["guards"][0]),
        lambda said: said.update(format=2),
        lambda said: said.update(guards="none"),
    ],
)
def test_any_other_header_is_refused(change: Callable[[Any], None]) -> None:
    with pytest.raises(NotUnderstood):
        from_bytes(changed(change), manifest=MANIFEST)


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"{}", bytes(64)])
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(NotUnderstood):
        from_bytes(data, manifest=MANIFEST)


def test_each_byte_counts() -> None:
    data = to_bytes(Package(MANIFEST, (FITTED,)))
    with pytest.raises(NotUnderstood):
        from_bytes(data + b"\0", manifest=MANIFEST)
    with pytest.raises(NotUnderstood):
        from_bytes(data[:-1], manifest=MANIFEST)


def test_numbers_that_are_none_are_refused_in_tensors_too() -> None:
    data = bytearray(to_bytes(Package(MANIFEST, (FITTED,))))
    data[-4:] = b"\x00\x00\xc0\x7f"
    with pytest.raises(NotUnderstood, match="finite"):
        from_bytes(bytes(data), manifest=MANIFEST)


def test_a_guard_without_a_cut_is_not_packed() -> None:
    with pytest.raises(DefenceError, match="cut"):
        to_bytes(Package(MANIFEST, (replace(FITTED, cut=None),)))
    with pytest.raises(DefenceError, match="learned"):
        to_bytes(Package(MANIFEST, ()))


def test_the_largest_guards_are_too_large_until_the_rest_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    guards = [Fitted({"t": torch.zeros(count)}, guard=name) for name, count in (("a", 10), ("b", 30), ("c", 20))]
    monkeypatch.setattr(package, "MAX_BYTES", package.HEADER + 240)
    assert package.too_large(guards) == {}
    monkeypatch.setattr(package, "MAX_BYTES", package.HEADER + 100)
    reasons = package.too_large(guards)
    assert list(reasons) == ["b", "c"]
    assert "expected at most 100 bytes of fitted guards, got 120 of b; let it keep less" in reasons["b"]
    assert "got 80 of c beside 40 of the others" in reasons["c"]

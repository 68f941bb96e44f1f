"""What Keras files may not hold: code, settings that nothing reads, data outside the file, stray arrays."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.vetgate.formats.keras.keras_files import (
    archive,
    called,
    conv,
    dense,
    described,
    functional,
    images,
    layer,
    sequential,
    single,
)
from vetgate.errors import NotUnderstood
from vetgate.formats.inspect import inspect_model
from vetgate.formats.keras.hdf5 import read_hdf5

FLAT = layer("Flatten", "flat", data_format="channels_last")
WEIGHTS = {"head": [np.ones((40, 3), np.float32), np.zeros(3, np.float32)]}


def inspected(data: bytes) -> None:
    inspect_model({"m.keras": data}, described())


def test_a_plain_model_is_understood() -> None:
    inspected(archive(sequential(images(), FLAT, dense("head", 3)), WEIGHTS))
    inspected(single(sequential(images(), FLAT, dense("head", 3)), WEIGHTS))


def test_all_that_is_missing_is_named_at_once() -> None:
    lambda_layer = layer("Lambda", "gate", function={"class_name": "__lambda__", "config": {"code": "x"}})
    own = layer("Dense", "own", units=3) | {"registered_name": "mine>Dense", "module": "mine.layers"}
    half = dense("half", 3)
    half["config"]["dtype"] = "mixed_float16"
    config = sequential(
        images(), lambda_layer, own, half, layer("UpSampling2D", "up"), conv("c", 3, 3, data_format="channels_first"),
        dense("odd", 3, activation="my_activation", gate="on"),
    )  # fmt: skip
    with pytest.raises(NotUnderstood) as caught:
        inspected(archive(config, {}))
    for text in (
        "'Lambda' in layer 'gate'", "module 'mine.layers'", "registered as 'mine>Dense'", "mixed_float16",
        "'UpSampling2D'", "channels_first", "my_activation", "setting 'gate' in layer 'odd'", "hand in an ONNX graph",
    ):  # fmt: skip
        assert text in str(caught.value)


@pytest.mark.parametrize("kwargs", [{"training": True}, {"mask": []}, 1, "x", None, [[]]])
def test_a_call_takes_other_layers_and_nothing_else(kwargs: Any) -> None:
    layers = [called(images()), called(FLAT, "images"), called(dense("head", 3), "flat")]
    config = functional(*layers, inputs="images", outputs=["head"])
    inspected(archive(config, WEIGHTS))
    layers[2]["inbound_nodes"][0]["kwargs"] = kwargs
    with pytest.raises(NotUnderstood, match="called with the outputs of others only"):
        inspected(archive(config, WEIGHTS))


def test_an_activation_that_keras_2_computed_otherwise_needs_a_version() -> None:
    config = sequential(images(), FLAT, dense("head", 3, activation="hard_sigmoid"))
    inspected(archive(config, WEIGHTS, version="3.1.0"))
    with pytest.raises(NotUnderstood, match=r"hard_sigmoid of Keras 2\.15\.0"):
        inspected(archive(config, WEIGHTS, version="2.15.0"))


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"head": [np.ones((39, 3), np.float32), np.zeros(3, np.float32)]}, "arrays of shapes"),
        ({"head": WEIGHTS["head"][:1]}, "arrays of shapes"),
        ({**WEIGHTS, "flat": [np.zeros(3, np.float32)]}, "no arrays in layer 'flat'"),
        ({"head": [np.full((40, 3), np.nan, np.float32), np.zeros(3, np.float32)]}, "finite"),
    ],
)
def test_arrays_fit_their_layers(weights: Any, match: str) -> None:
    with pytest.raises(NotUnderstood, match=match):
        inspected(archive(sequential(images(), FLAT, dense("head", 3)), weights))


def test_an_input_of_another_shape_is_refused() -> None:
    config = sequential(images(shape=(None, 6, 4, 2)), FLAT, dense("head", 3))
    with pytest.raises(NotUnderstood, match="as input_shape says"):
        inspected(archive(config, WEIGHTS))


def test_archives_hold_the_three_members_of_keras_and_nothing_else() -> None:
    data = archive(sequential(images(), FLAT, dense("head", 3)), WEIGHTS)
    with pytest.raises(NotUnderstood, match="HiddenBytes"):
        inspected(data + b"more")
    with pytest.raises(NotUnderstood, match=r"expected config\.json, model\.weights\.h5 and metadata\.json"):
        inspected(archive(sequential(images(), FLAT, dense("head", 3)), WEIGHTS, **{"assets/run.py": b"x"}))
    for cut in (10, len(data) // 2, len(data) - 5):
        with pytest.raises(NotUnderstood):
            inspected(data[:cut])


def _soft(file: Any, path: Path) -> None:
    file["link"] = h5py.SoftLink("/a")


def _external(file: Any, path: Path) -> None:
    file["link"] = h5py.ExternalLink(str(path / "other.h5"), "/a")


def _virtual(file: Any, path: Path) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(path / "other.h5"), "a", shape=(4,))
    file.create_virtual_dataset("v", layout)


def _outside(file: Any, path: Path) -> None:
    file.create_dataset("o", (4,), "f4", external=[(str(path / "raw"), 0, 16)])


def _filtered(file: Any, path: Path) -> None:
    file.create_dataset("f", data=np.zeros(1000, np.float32), compression="lzf")


def _text(file: Any, path: Path) -> None:
    file["t"] = "text"


def _huge(file: Any, path: Path) -> None:
    file.create_dataset("h", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")


def _deep(file: Any, path: Path) -> None:
    file["x/x/x/x/x/x/x/x/x/x/x/x/x/x/x/x"] = np.zeros(1)


def _round(file: Any, path: Path) -> None:
    file.create_group("g")["again"] = file["/"]


@pytest.mark.parametrize("spoil", [_soft, _external, _virtual, _outside, _filtered, _text, _huge, _deep, _round])
def test_hdf5_holds_plain_data_inside_the_file(spoil: Callable[[Any, Path], None], tmp_path: Path) -> None:
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        file.create_dataset("a", data=np.arange(4, dtype=np.float32), compression="gzip", shuffle=True)
    assert read_hdf5(made.getvalue()).arrays["a"].tolist() == [0, 1, 2, 3]
    with h5py.File(made, "r+") as file:
        spoil(file, tmp_path)
    with pytest.raises(NotUnderstood):
        read_hdf5(made.getvalue())

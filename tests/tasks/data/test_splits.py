from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tasks.data import npz
from tasks.data import reference as data
from tasks.data.splits import SHARES, partition, resize, sample
from tasks.settings import Settings, load_settings
from vetgate.errors import BadSubmission, NotUnderstood


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A registry with the digits and with `signs`: 4 uneven classes of colour images in tracks of 10, or of 5."""
    home = tmp_path_factory.mktemp("home")
    random = np.random.RandomState(0)
    labels = random.permutation(np.repeat([0, 1, 2, 3], [300, 120, 60, 20]))
    track = np.empty(len(labels), np.int16)
    for label in range(4):
        track[labels == label] = np.arange((labels == label).sum()) // (5 if label == 3 else 10)
    arrays: dict[str, Any] = {"y_train": labels, "track_train": track, "y_test": np.arange(40) % 4}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = random.randint(0, 256, (len(arrays[f"y_{part}"]), 9, 7, 3)).astype(np.uint8)
    np.savez_compressed(home / "signs.npz", **arrays)
    made = load_settings(home=home)
    data.add(made, "signs", home / "signs.npz")
    return made


@pytest.mark.parametrize(
    ("source", "target"),
    [((32, 32), (30, 30)), ((8, 8), (32, 32)), ((9, 7), (3, 20)), ((28, 28), (28, 28)), ((1, 5), (4, 1))],
)
def test_resizing_is_that_of_torch(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = np.random.RandomState(0).rand(3, 2, *source).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x), size=target, mode="bilinear", align_corners=False, antialias=False
    ).numpy()
    ours = resize(x, *target)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5


def test_every_row_has_one_purpose_in_proportion_to_its_class() -> None:
    y = np.random.RandomState(1).permutation(np.repeat(np.arange(5), [1000, 400, 100, 40, 7]))
    rows = partition(y, None, seed=3)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(y)))
    for label, count in enumerate(np.bincount(y)):
        for purpose, share in SHARES.items():
            assert abs((y[rows[purpose]] == label).sum() - share * count) <= 1


@pytest.mark.parametrize("count", [4, 5, 9])
@pytest.mark.parametrize("tracked", [False, True])
def test_few_images_or_tracks_of_a_class_reach_every_purpose(count: int, tracked: bool) -> None:
    y = np.repeat(np.arange(6), 3 * count if tracked else count)
    # tracks of one, two and more images
    track = np.concatenate([np.repeat(np.arange(count), np.bincount(np.arange(3 * count) % count * 7 % count))] * 6)
    for seed in range(20):
        rows = partition(y, track if tracked else None, seed)
        assert all(set(y[rows[purpose]]) == set(range(6)) for purpose in SHARES)


def test_no_track_falls_on_both_sides() -> None:
    random = np.random.RandomState(2)
    y = random.randint(0, 6, 2000)
    track = random.randint(0, 9, 2000)
    rows = partition(y, track, seed=0)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(y)))
    seen = [{(int(y[r]), int(track[r])) for r in part} for part in rows.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 6 * 9
    assert all(len(set(y[part].tolist())) == 6 for part in rows.values())


def test_a_sample_keeps_every_class_and_the_shares() -> None:
    y = np.repeat(np.arange(4), [5000, 300, 40, 2])
    chosen = sample(y, np.arange(len(y)), 100, seed=5)
    counts = np.bincount(y[chosen])
    assert len(chosen) == len(set(chosen.tolist())) == 100 and counts.tolist() == [93, 5, 1, 1]
    assert chosen.tolist() != sorted(chosen.tolist())
    assert sorted(sample(y, np.arange(10), 100, seed=5)) == list(range(10))
    assert len(sample(y, np.arange(len(y)), 2, seed=5)) == 2


def test_splits_of_the_digits_hold_scaled_images_and_their_labels(settings: Settings) -> None:
    ref = data.resolve(settings, "digits")
    paths = data.materialise(settings, ref, (1, 8, 8), classes=10)
    file = data.read(settings, ref)
    rows = load_file(paths.directory / "rows.safetensors")
    for purpose in ("invert", "confirm", "repair", "validate", "test"):
        split = load_file(getattr(paths, purpose))
        part = "test" if purpose == "test" else "train"
        expected = npz.read_array(file, f"x_{part}")[rows[purpose]].transpose(0, 3, 1, 2).astype(np.float32) / 255
        assert split["x"].dtype == np.float32 and split["y"].dtype == np.int64
        assert np.array_equal(split["x"], expected)
        assert np.array_equal(split["y"], npz.read_array(file, f"y_{part}")[rows[purpose]])
    assert paths.metadata["counts"] == {"invert": 362, "confirm": 215, "repair": 574, "validate": 287, "test": 359}
    assert paths.metadata["resize"] is None
    # a change of what a split holds must also raise LAYOUT, or stored splits would be read as new ones
    golden = hashlib.sha256(b"".join(rows[purpose].tobytes() for purpose in sorted(rows))).hexdigest()
    assert (data.LAYOUT, golden[:16]) == (1, "90b32b884f44ea08")


def test_splits_are_resized_track_aware_and_the_same_everywhere(settings: Settings, tmp_path: Path) -> None:
    ref = data.resolve(settings, "signs")
    sizes = {"invert": 50, "test": 10}
    paths = data.materialise(settings, ref, (3, 12, 5), tmp_path / "out", sizes, classes=4)
    assert paths.invert == tmp_path / "out" / "invert.safetensors"
    assert paths.metadata["resize"] == "bilinear, align_corners=False"
    assert paths.metadata["counts"]["invert"] == 50 and paths.metadata["counts"]["test"] == 10
    file = data.read(settings, ref)
    x, y, track = (npz.read_array(file, name) for name in ("x_train", "y_train", "track_train"))
    rows = load_file(paths.directory / "rows.safetensors")
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x[rows["invert"]]).permute(0, 3, 1, 2).float() / 255, size=(12, 5), mode="bilinear"
    )
    assert np.abs(load_file(paths.invert)["x"] - theirs.numpy()).max() < 1e-5
    seen = [{(int(y[r]), int(track[r])) for r in rows[purpose]} for purpose in SHARES]
    assert sum(map(len, seen)) == len(set().union(*seen))

    elsewhere = load_settings(home=tmp_path / "home")
    again = data.materialise(elsewhere, data.add(elsewhere, "named-anew", file), (3, 12, 5), None, sizes)
    assert again.digest == paths.digest
    assert again.repair.read_bytes() == paths.repair.read_bytes()


def test_a_second_vetting_uses_what_is_kept_unless_it_was_changed(settings: Settings) -> None:
    ref = data.resolve(settings, "digits")
    first = data.materialise(settings, ref, (1, 10, 10))
    written = first.invert.stat().st_mtime_ns
    assert data.materialise(settings, ref, (1, 10, 10)) == first
    assert first.invert.stat().st_mtime_ns == written

    whole = first.confirm.read_bytes()
    first.confirm.chmod(0o644)
    first.confirm.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert data.materialise(settings, ref, (1, 10, 10)) == first
    assert first.confirm.read_bytes() == whole
    assert data.materialise(settings, ref, (1, 10, 10), sizes={"repair": 9}).digest != first.digest


def test_training_data_are_capped_and_resized(settings: Settings, tmp_path: Path) -> None:
    ref = data.resolve(settings, "signs")
    split = load_file(data.materialise_training(settings, ref, (3, 9, 7), tmp_path, cap=100, classes=4))
    assert split["x"].shape == (100, 3, 9, 7) and np.bincount(split["y"]).tolist() == [60, 24, 12, 4]
    everything = load_file(data.materialise_training(settings, ref, (3, 9, 7), classes=5))
    assert len(everything["y"]) == 500
    affordable = load_file(
        data.materialise_training(settings, ref, (3, 9, 7), tmp_path / "few", size=200 * 4 * 3 * 9 * 7)
    )
    assert np.bincount(affordable["y"]).tolist() == [120, 48, 24, 8]
    with pytest.raises(NotUnderstood, match="at most 3 classes, as the model has, got 4 in signs"):
        data.materialise_training(settings, ref, (3, 9, 7), classes=3)


def test_a_model_that_does_not_fit_the_data_is_refused(settings: Settings) -> None:
    digits, signs = (data.resolve(settings, name) for name in ("digits", "signs"))
    with pytest.raises(BadSubmission, match=r"expected input_shape \[1, H, W\].*grey.*got \[3, 8, 8\]"):
        data.materialise(settings, digits, (3, 8, 8))
    with pytest.raises(BadSubmission, match=r"expected input_shape \[3, H, W\].*colour.*3 x 9 x 7"):
        data.materialise_training(settings, signs, (1, 9, 7))
    with pytest.raises(
        NotUnderstood, match="expected 10 classes, as the reference data digits has, got a model with 11"
    ):
        data.materialise(settings, digits, (1, 8, 8), classes=11)
    for wrong in ({"invrt": 5}, {"test": 0}):
        with pytest.raises(BadSubmission, match="expected sizes above 0"):
            data.materialise(settings, digits, (1, 8, 8), sizes=wrong)

"""A folder of images becomes one data set: split, resized and counted by fixed rules, and what is no image is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.data.image_folder import pack
from tasks.data.npz import contents, read_array
from vetgate.errors import BadSubmission, NotUnderstood


def paint(path: Path, value: Any, size: tuple[int, int] = (6, 4), mode: str = "RGB", **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **how)


def packed(directory: Path, **how: Any) -> tuple[dict[str, Any], Path]:
    file = directory.parent / f"{len(list(directory.parent.glob('*.npz')))}.npz"
    done: list[float] = []
    found = pack(directory, file, **{"size": None, "grey": None, "progress": done.append} | how)
    assert done == sorted(done) and done[-1] == 1
    return found, file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    for label, name in enumerate(("stop", "go")):
        for number in range(10):
            paint(directory / name / f"{number}.png", (100 * label, number, 7))
    (directory / "stop" / ".DS_Store").write_bytes(b"left by a file manager")
    return directory


def test_a_fifth_of_each_class_is_for_testing_whatever_else_is_added(folder: Path) -> None:
    found, file = packed(folder)
    assert found == {"images": {"train": 16, "test": 4}, "classes": 2, "image": [4, 6, 3], "resized": 0}
    described = contents(file)
    assert described["class_names"] == ["go", "stop"] and described["image"] == [4, 6, 3]
    x, y = read_array(file, "x_test"), read_array(file, "y_test")
    assert y.tolist() == [0, 0, 1, 1] and x[:, 0, 0, 0].tolist() == [100, 100, 0, 0] and (x[..., 2] == 7).all()
    held_out = {(label, number) for label, number in zip(y.tolist(), x[:, 0, 0, 1].tolist(), strict=True)}
    paint(folder / "other" / "0.png", (1, 2, 3))
    paint(folder / "other" / "1.png", (1, 2, 3))
    again = packed(folder)[1]
    labels = read_array(again, "y_test")
    kept = read_array(again, "x_test")[labels != 1]
    numbers = [0 if label == 0 else 1 for label in labels if label != 1]
    assert {(a, b) for a, b in zip(numbers, kept[:, 0, 0, 1].tolist(), strict=True)} == held_out


def test_the_same_folder_gives_the_same_bytes(folder: Path) -> None:
    assert packed(folder)[1].read_bytes() == packed(folder)[1].read_bytes()


def test_folders_for_training_and_testing_are_taken_as_they_are(tmp_path: Path) -> None:
    directory = tmp_path / "images"
    for part, count in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            for number in range(count):
                paint(directory / part / name / f"{number}.jpg", number, mode="L", quality=95)
    found, file = packed(directory)
    assert found["images"] == {"train": 6, "test": 4} and found["image"] == [4, 6, 1]
    assert read_array(file, "y_train").tolist() == [0, 0, 0, 1, 1, 1]
    assert packed(directory, grey=False)[0]["image"] == [4, 6, 3]
    paint(directory / "c" / "0.png", 1)
    with pytest.raises(NotUnderstood, match="expected train and test"):
        packed(directory)


def test_images_of_any_size_are_resized_as_a_whole_and_turned_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    paint(folder / "go" / "turned.jpg", (200, 0, 0), size=(4, 6), exif=exif)
    assert packed(folder)[0]["resized"] == 0
    wide = Image.new("L", (8, 2))
    wide.putdata([0] * 4 + [255] * 4 + [0] * 4 + [255] * 4)
    (folder / "wide").mkdir()
    for number in range(2):
        wide.save(folder / "wide" / f"{number}.png")
    with pytest.raises(BadSubmission, match=r"one size, got 2x6 to 4x8; give --size|one size, got"):
        packed(folder)
    found, file = packed(folder, size=(2, 4))
    assert found["resized"] == 23 and found["image"] == [2, 4, 3]
    (row,) = read_array(file, "x_test")[read_array(file, "y_test") == 2]
    assert (np.diff(row[0, :, 0].astype(int)) >= 0).all() and row[0, 0, 0] < 60 < 195 < row[0, -1, 0]


def test_everything_that_is_no_image_is_named_at_once(folder: Path) -> None:
    (folder / "go" / "note.txt").write_text("no image")
    (folder / "stop" / "link.png").symlink_to(folder / "stop" / "0.png")
    Image.new("I;16", (6, 4)).save(folder / "stop" / "deep.png")
    with pytest.raises(NotUnderstood) as caught:
        packed(folder)
    for text in ("3 that are none", "go/note.txt (no image", "stop/link.png (a link", "stop/deep.png (pixels of mode"):
        assert text in str(caught.value)
    for name in ("go/note.txt", "stop/link.png", "stop/deep.png"):
        (folder / name).unlink()
    paint(folder / "go" / "cut.png", (1, 2, 3), size=(400, 300))
    whole = (folder / "go" / "cut.png").read_bytes()
    (folder / "go" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotUnderstood, match=r"1 that are none: go/cut\.png"):
        packed(folder, size=(4, 6))


def test_one_class_is_no_data_set(tmp_path: Path) -> None:
    paint(tmp_path / "images" / "a" / "0.png", (1, 2, 3))
    with pytest.raises(NotUnderstood, match="two classes"):
        packed(tmp_path / "images")

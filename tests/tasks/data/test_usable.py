from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data import npz, registry
from tasks.data import reference as data
from tasks.data.own_git import git
from tasks.data.usable import check_usable, doubts
from tasks.settings import Settings, load_settings
from vetgate.errors import NotUnderstood, StoreError

LABELS = np.repeat(np.arange(3), 4)


def arrays(y_train: Any = LABELS, y_test: Any = (0, 1, 2), most: int = 255, **more: Any) -> dict[str, Any]:
    random = np.random.RandomState(0)
    made: dict[str, Any] = {"y_train": np.asarray(y_train, np.int64), "y_test": np.asarray(y_test, np.int64), **more}
    for part in ("train", "test"):
        made[f"x_{part}"] = random.randint(0, most + 1, (len(made[f"y_{part}"]), 6, 5, 1)).astype(np.uint8)
    return made


def write(folder: Path, **changed: Any) -> Path:
    np.savez(folder / "faces.npz", **arrays(**changed))
    return folder / "faces.npz"


def named(*names: str) -> np.ndarray[Any, np.dtype[np.str_]]:
    return np.array(names)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


REFUSED: list[tuple[dict[str, Any], str]] = [
    # labels
    ({"y_train": LABELS + 1, "y_test": [1, 2, 3]}, r"each label from 0 to 3, got none with 0; number them from 0"),
    ({"y_train": np.where(LABELS == 1, 3, LABELS), "y_test": [0, 2, 3]}, "from 0 to 3, got none with 1;"),
    ({"y_train": np.where(LABELS == 2, 2**62, LABELS)}, "got none with 3, 4, 5, 6, 7 and 46116860184273"),
    ({"y_train": [0] * 9, "y_test": [0]}, "two classes or more, got 1;"),
    ({"class_names": named("a", "b")}, "labels from 0 to 1, got some outside"),
    ({"class_names": named("a", "b", "c", "d")}, "from 0 to 3, got none with 3; add images of them"),
    # names
    ({"class_names": named("cat", "dog", "cat")}, "another name for each class, got 'cat' twice"),
    ({"class_names": named("cat", "dog", " dog ")}, "got 'dog' twice"),
    ({"class_names": named("cat", "", "dog")}, "a name for each class, got an empty one for 1"),
    ({"class_names": named("cat", "dog", "\u2003")}, "got an empty one for 2"),
    # numbers
    ({"y_train": LABELS[:-1]}, r"4 or more images of each class in x_train, .*validate, got 3 of class 2; add images"),
    ({"y_train": LABELS[:-4], "class_names": named("a", "b", "c")}, "got 0 of class c;"),
    ({"y_train": [0, 1, 2]}, "got 1 of class 0, 1 of class 1, 1 of class 2;"),
    ({"y_train": range(9), "y_test": range(9)}, "1 of class 4 and 4 more;"),
    ({"y_test": [0, 2]}, "1 or more images of each class in x_test, got 0 of class 1;"),
    ({"track_train": np.arange(12) % 4 * (LABELS != 1)}, "4 or more tracks .* got 1 of class 1; add tracks"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_no_model_can_be_vetted_on_is_refused_at_the_door(
    settings: Settings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(NotUnderstood, match=message) as refused:
        data.add(settings, "faces", write(tmp_path, **change))
    assert refused.value.exit_code == 3 and str(refused.value).startswith("faces.npz: expected ")
    assert not (settings.home / "data").exists()


def test_the_fewest_images_are_enough_for_every_purpose(settings: Settings, tmp_path: Path) -> None:
    ref = data.add(settings, "faces", write(tmp_path, class_names=named("a", "b", "c")))
    paths = data.materialise(settings, ref, (1, 6, 5), classes=3)
    assert paths.metadata["counts"] == dict.fromkeys(("invert", "confirm", "repair", "validate", "test"), 3)


@pytest.mark.parametrize("shape", [(12, 1, 6, 5), (12, 3, 6, 5), (12, 3, 32, 32)])
def test_channels_first_is_named_as_such(tmp_path: Path, shape: tuple[int, ...]) -> None:
    file = tmp_path / "turned.npz"
    np.savez(file, **{**arrays(), "x_train": np.zeros(shape, np.uint8)})
    with pytest.raises(NotUnderstood, match=r"channels are first: write x_train.transpose\(0, 2, 3, 1\)"):
        npz.contents(file)


@pytest.mark.parametrize(("most", "warned"), [(0, True), (1, True), (2, False), (255, False)])
def test_pixels_that_never_exceed_one_are_doubted(tmp_path: Path, most: int, warned: bool) -> None:
    found = npz.contents(write(tmp_path, most=most))
    assert found["brightest"] == most
    said = doubts({"name": "faces", **found})
    assert bool(said) == warned and all("multiply them by 255" in line for line in said)


def test_a_suppliers_training_set_may_lack_classes_but_nothing_is_vetted_on_it(
    settings: Settings, tmp_path: Path
) -> None:
    ref = data.add(settings, "theirs", write(tmp_path, y_train=LABELS[:-2]), training=True)
    assert data.materialise_training(settings, ref, (1, 6, 5), classes=3).is_file()
    with pytest.raises(StoreError, match=r"data theirs cannot be vetted on: .* got 2 of class 2; .*add it again"):
        data.materialise(settings, ref, (1, 6, 5), classes=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.where(LABELS == 1, 2, LABELS), "y_test": [0, 2, 2]}, "none with 1"),
        ({"y_train": LABELS[:-3]}, "got 1 of class 2"),
        ({"class_names": named("a", "a", "b")}, "'a' twice"),
        ({}, ""),
    ],
)
def test_data_that_were_added_before_are_checked_when_a_model_is_vetted(
    settings: Settings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data.add(settings, "faces", write(tmp_path, **change), training=True)
    # as the sidecar was written then
    root = settings.home / "data"
    sidecar = json.loads((root / "faces.json").read_text())
    (root / "faces.json").write_text(json.dumps({k: v for k, v in sidecar.items() if k not in ("usable", "brightest")}))
    git(root, "commit", "--all", "--message", "as before")
    ref = data.resolve(settings, "faces")
    if not message:
        assert data.materialise(settings, ref, (1, 6, 5)).invert.is_file()
        return
    for _ in range(2):
        with pytest.raises(StoreError, match=f"cannot be vetted on: .*{message}.* name other reference_data"):
            data.materialise(settings, ref, (1, 6, 5))


def test_the_shipped_digits_are_usable(settings: Settings) -> None:
    ref = data.resolve(settings, "digits")
    assert data.describe(settings, ref)["usable"] is True
    registry.require_usable(settings, ref)
    # nothing had to be read again for that
    assert not (settings.home / "data-cache").exists()


def test_labels_of_any_size_take_no_memory() -> None:
    with pytest.raises(NotUnderstood, match="none with 1, 2, 3, 4, 5 and "):
        check_usable("x.npz", np.array([0, 2**63 - 1]), np.array([0]), None, None)


def test_the_command_says_its_doubts_in_words_and_as_json(settings: Settings, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "flows", "data", "add", "faces", str(write(tmp_path, most=1)), "--json"]
    done = subprocess.run(line, capture_output=True, env={"VETGATE_HOME": str(settings.home), "PATH": "/usr/bin:/bin"})
    (warning,) = json.loads(done.stdout)["warnings"]
    assert done.returncode == 0 and "no pixel of faces exceeds 1" in warning
    assert "warning: no pixel of faces exceeds 1" in done.stderr.decode()

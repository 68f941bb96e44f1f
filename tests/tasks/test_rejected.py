"""What was rejected is kept with its image, bounded, for this user only."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.rejected import FOLDER, Rejection, keep, kept, picture
from vetgate.errors import BadSubmission, StoreError

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def rejection(number: int = 0, **fields: Any) -> Rejection:
    said: dict[str, Any] = {
        "time": (START + timedelta(seconds=number)).isoformat(),
        "name": "digits",
        "version": "1",
        "manifest": "a" * 64,
        "action": "reject",
        "outcome": "reject",
        "said": 7,
        "said_class": "seven",
        "score": 0.5,
        "alarms": ("one",),
        "scores": {"one": -0.25, "two": None},
        "cuts": {"one": -0.5, "two": 3},
    }
    return Rejection(**said | fields)


def pixels(channels: int = 1, seed: int = 0, side: int = 6) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (channels, side, side + 1), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_image_and_figures_come_back_as_they_were(tmp_path: Path, channels: int) -> None:
    image = pixels(channels)
    keep(tmp_path, rejection(), image)
    (found,) = kept(tmp_path)
    assert found.rejection == rejection()
    png = picture(found)
    assert png is not None
    read = np.asarray(Image.open(io.BytesIO(png)))
    expected = image.transpose(1, 2, 0) if channels == 3 else np.concatenate(list(image), axis=1)
    assert np.array_equal(read, expected)


def test_the_newest_come_first_and_of_one_name_where_one_is_asked_for(tmp_path: Path) -> None:
    for number, name in enumerate(("digits", "signs", "digits")):
        keep(tmp_path, rejection(number, name=name), pixels())
    assert [item.rejection.name for item in kept(tmp_path)] == ["digits", "signs", "digits"]
    assert [item.rejection.time for item in kept(tmp_path, "digits")] == [rejection(n).time for n in (2, 0)]
    assert kept(tmp_path, "other") == []
    for bad in ("..", "*", "a/b", ""):
        with pytest.raises(BadSubmission, match="expected the name of a model"):
            kept(tmp_path, bad)


def test_beyond_the_number_the_oldest_go(tmp_path: Path) -> None:
    for number in range(7):
        keep(tmp_path, rejection(number), pixels(), most=3)
    assert [item.rejection.time for item in kept(tmp_path)] == [rejection(n).time for n in (6, 5, 4)]
    assert len(list((tmp_path / FOLDER / "digits").iterdir())) == 6


def test_beyond_the_bytes_the_oldest_go(tmp_path: Path) -> None:
    for number in range(5):
        keep(tmp_path, rejection(number), pixels(3, number, side=100), most_bytes=70_000)
    held = sum(file.stat().st_size for file in (tmp_path / FOLDER / "digits").iterdir())
    assert held <= 70_000 and [item.rejection.time for item in kept(tmp_path)] == [rejection(n).time for n in (4, 3)]


def test_only_this_user_reads_them(tmp_path: Path) -> None:
    keep(tmp_path, rejection(), pixels())
    assert (tmp_path / FOLDER).stat().st_mode & 0o077 == 0 or (tmp_path / FOLDER / "digits").stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / FOLDER / "digits").iterdir())


@pytest.mark.parametrize("line", ["", "{", "[]", json.dumps({"time": "x"}), "[" * 100_000])
def test_what_is_no_rejection_is_passed_over(tmp_path: Path, line: str) -> None:
    keep(tmp_path, rejection(), pixels())
    (tmp_path / FOLDER / "digits" / "zzz.json").write_text(line)
    assert len(kept(tmp_path)) == 1


def test_a_picture_that_is_gone_or_none_is_none(tmp_path: Path) -> None:
    keep(tmp_path, rejection(), pixels())
    (found,) = kept(tmp_path)
    found.image.write_bytes(b"<script>")
    assert picture(found) is None
    found.image.unlink()
    assert picture(found) is None


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(StoreError, match="make room"):
        keep(tmp_path, rejection(), pixels())

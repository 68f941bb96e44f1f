"""A data set of a stranger: its headers, its bytes and the names of its classes."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data import npz
from vetgate.errors import NotUnderstood
from vetgate.formats.plain_text import steering

LABELS = np.arange(40, dtype=np.int64) % 4
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "x_train": np.zeros((40, 6, 5, 1), np.uint8),
    "y_train": LABELS,
    "x_test": np.ones((40, 6, 5, 1), np.uint8),
    "y_test": LABELS,
}


def member(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def headed(header: str, body: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 * version, "little") + text + body


def write(folder: Path, **members: bytes) -> Path:
    path = folder / "signs.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name, data in ({name: member(array) for name, array in ARRAYS.items()} | members).items():
            archive.writestr(f"{name}.npy", data)
    return path


def said(descr: str = "'<i8'", shape: str = "(40,)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "header",
    [
        said(),
        said().replace(" ", ""),
        said().replace(", }", "}"),
        said(order="True"),
        said() + " " * 3000,
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_header_may_be_spaced_and_padded_as_other_writers_do(header: str, version: int, tmp_path: Path) -> None:
    path = write(tmp_path, y_train=headed(header, LABELS.tobytes(), version))
    assert npz.contents(path)["arrays"]["y_train"] == {"dtype": "<i8", "shape": [40]}
    assert np.array_equal(npz.read_array(path, "y_train"), LABELS)


HEADERS = {
    "brackets that stay open": said("[" * 2000),
    "brackets in brackets": said("[" * 900 + "]" * 900),
    "thousands of signs": said("-" * 3500 + "1"),
    "a header beyond any array": said("'<i8'" + " " * 9000),
    "a sum": said(shape="(20+20,)"),
    "a call": said(shape="(exit(),)"),
    "a size of thousands of digits": said(shape=f"({'9' * 3900},)"),
    "a size below zero": said(shape="(-1,)"),
    "a number for the sizes": said(shape="(40)"),
    "a truth value as size": said(shape="(True,)"),
    "fields": said("[('a', '<i8')]"),
    "an array in an array": said("('<i8', (2,))"),
    "another key": said().replace(", }", ", 'x': 1}"),
    "a key given twice": said().replace(", }", ", 'shape': (41,)}"),
    "no dictionary": "[1, 2]",
    "nothing": "",
    "an unknown type": said("'<i3'"),
    "a width beyond any memory": said("'<U999999999'"),
    "a control": said("'\x1b[2J'"),
}


@pytest.mark.parametrize("what", sorted(HEADERS))
@pytest.mark.parametrize("name", ["y_train", "class_names"])
def test_a_header_that_numpy_did_not_write_is_not_evaluated(what: str, name: str, tmp_path: Path) -> None:
    path = write(tmp_path, **{name: headed(HEADERS[what], LABELS.tobytes())})
    with pytest.raises(NotUnderstood, match=r"signs\.npz: ") as error:
        npz.contents(path)
    assert len(str(error.value)) < 400
    assert steering(str(error.value)) is None


def test_an_archive_with_many_names_is_not_echoed(tmp_path: Path) -> None:
    with pytest.raises(NotUnderstood, match="rename or remove the others") as error:
        npz.contents(write(tmp_path, **{f"a{number}": b"" for number in range(2000)}))
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_damaged_data_are_no_fault_of_the_disk(place: float, tmp_path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, ARRAYS["x_train"].shape).astype(np.uint8)
    path = write(tmp_path, x_train=member(noise))
    data = bytearray(path.read_bytes())
    first, size = data.find(b"BZh"), data.find(b"y_train.npy")
    data[first + int(place * (size - first))] ^= 255
    path.write_bytes(data)
    with pytest.raises(NotUnderstood, match="cannot be read"):
        npz.contents(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"class_names": member(np.array(["a" * 201, "b", "c", "d"]))}, "at most 100000 names of 200 characters"),
        ({"class_names": member(np.array(["a"] * 100_001))}, "at most 100000 names of 200 characters"),
        ({"class_names": member(np.array(["a" * 150] * 3400))}, "together at most 500000 characters, got 510000"),
        ({"x_train": member(np.zeros((1, 4097, 1, 1), np.uint8))}, "at most 10000000 images of 4096x4096"),
        ({"x_test": member(np.zeros((1, 6, 5000, 1), np.uint8))}, "at most 10000000 images of 4096x4096"),
        ({"x_train": member(np.zeros((10_000_001, 1, 1, 1), np.uint8))}, "at most 10000000 images of 4096x4096"),
    ],
)
def test_what_unfolds_beyond_bounds_is_refused(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(NotUnderstood, match=message):
        npz.contents(write(tmp_path, **members))


def test_a_small_file_of_endless_names_takes_no_memory(tmp_path: Path) -> None:
    path, letters = write(tmp_path), 10_000_000
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("class_names.npy", "w") as names:
        names.write(headed(said(f"'<U{letters}'", "(2,)")))
        for _ in range(8):
            names.write(bytes(letters))
    assert path.stat().st_size < 200_000
    code = (
        "import resource, sys; from pathlib import Path; from tasks.data import npz\n"
        "from vetgate.errors import NotUnderstood\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: npz.contents(Path(sys.argv[1]))\n"
        "except NotUnderstood as e: print(e)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    message, grown = ran.stdout.splitlines()
    assert "at most 100000 names of 200 characters" in message and int(grown) < 30_000, ran.stdout


@pytest.mark.parametrize(
    ("name", "control"),
    [
        ("d\x1b[31mog", r"\\x1b"),
        ("d\u202eog", r"\\u202e"),
        ("d\u200bog", r"\\u200b"),
        ("d\x00og", r"\\x00"),
        ("d\nog", r"\\n"),
        ("\U000e0041dog", r"\\U000e0041"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_names_of_classes_are_plain_text(name: str, control: str, order: str, tmp_path: Path) -> None:
    good = np.array(["cat", "dög", "ai\u200cr", "b"]).astype(f"{order}U8")
    assert npz.contents(write(tmp_path, class_names=member(good)))["class_names"] == ["cat", "dög", "ai\u200cr", "b"]
    bad = np.array(["cat", name, "c", "d"]).astype(f"{order}U8")
    with pytest.raises(NotUnderstood, match=rf"the name of class 1, got the control {control}; remove it"):
        npz.contents(write(tmp_path, class_names=member(bad)))


@pytest.mark.parametrize("letter", [0x7FFFFFFF, 0x110000, 0xD800])
def test_a_name_of_what_is_no_character_is_refused(letter: int, tmp_path: Path) -> None:
    codes = np.array([[97, 98], [97, letter], [97, 99], [97, 100]], "<u4")
    with pytest.raises(NotUnderstood, match="cannot be read"):
        npz.contents(write(tmp_path, class_names=headed(said("'<U2'", "(4,)"), codes.tobytes())))

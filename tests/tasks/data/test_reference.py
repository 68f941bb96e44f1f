from __future__ import annotations

import io
import os
import resource
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tasks.data import npz
from tasks.data import reference as data
from tasks.settings import Settings, load_settings
from vetgate.errors import BadSubmission, NotUnderstood, StoreError


def arrays(seed: int = 0, **changed: Any) -> dict[str, Any]:
    random = np.random.RandomState(seed)
    made = {}
    for part, count in (("train", 60), ("test", 20)):
        made[f"x_{part}"] = random.randint(0, 256, (count, 5, 4, 3)).astype(np.uint8)
        made[f"y_{part}"] = (np.arange(count) % 4).astype(np.int64)
    return made | changed


def write(path: Path, members: dict[str, Any], compression: int = zipfile.ZIP_LZMA) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in members.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asanyarray(array))
            archive.writestr(f"{name}.npy", buffer.getvalue())
    return path


def objects(settings: Settings) -> list[Path]:
    return [p for p in Path(settings.data_remote).rglob("*") if p.is_file()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A registry with the digits, which tests here read and never change."""
    settings = load_settings(home=tmp_path_factory.mktemp("home"))
    data.resolve(settings, "digits")
    return settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


def test_the_digits_are_there_without_being_added(shared: Settings) -> None:
    from sklearn.datasets import load_digits

    ref = data.resolve(shared, "digits")
    file = data.read(shared, ref)
    x = np.concatenate([npz.read_array(file, "x_train"), npz.read_array(file, "x_test")])
    y = np.concatenate([npz.read_array(file, "y_train"), npz.read_array(file, "y_test")])
    theirs = load_digits()
    ours = sorted((*image.ravel().tolist(), int(label)) for image, label in zip(x, y, strict=True))
    expected = np.rint(theirs.data * 255 / 16).astype(int)
    assert ours == sorted((*image.tolist(), int(label)) for image, label in zip(expected, theirs.target, strict=True))
    per_class = np.bincount(npz.read_array(file, "y_test")) / np.bincount(y)
    assert np.abs(per_class - 0.2).max() < 0.01
    assert ref == data.resolve(shared, "digits")
    # the split belongs to the key of every evidence: it must be the same on every machine
    assert ref.sha256 == "9111b67fa718c75ba70703549d542bbcd6e6329222f1efcc02ff46d1cb7f2652"


def test_an_unknown_set_is_named_with_what_to_do(shared: Settings) -> None:
    with pytest.raises(StoreError, match=r"\(digits\), got 'gtsrb'.*vetgate data add gtsrb"):
        data.resolve(shared, "gtsrb")
    for name in ("../digits", "Digits", "", "-x"):
        with pytest.raises(StoreError, match="expected a registered data set"):
            data.resolve(shared, name)
        with pytest.raises(BadSubmission, match="expected a data set name"):
            data.add(shared, name, Path("x.npz"))
    with pytest.raises(BadSubmission, match="no readable file"):
        data.add(shared, "gtsrb", Path("no-such-file.npz"))


def test_two_processes_read_at_once(shared: Settings, tmp_path: Path) -> None:
    ref = data.resolve(shared, "digits")
    for cached in (shared.home / "data-cache").glob("*"):
        cached.unlink()
    code = (
        "import sys; from pathlib import Path; from tasks.data import reference as data\n"
        "from tasks.settings import load_settings\n"
        "s = load_settings(home=Path(sys.argv[1])); ref = data.resolve(s, 'digits')\n"
        "print(ref.rev, data.read(s, ref))"
    )
    readers = [
        subprocess.Popen([sys.executable, "-c", code, str(shared.home)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {reader.communicate(timeout=120)[0].strip() for reader in readers}
    assert said == {f"{ref.rev} {shared.home / 'data-cache' / ref.sha256}.npz"}
    assert [reader.returncode for reader in readers] == [0, 0]
    assert sorted(os.listdir(shared.home)) == ["data", "data-cache", "data-remote", "data.lock"]


def test_an_old_revision_is_read_after_the_data_changed(settings: Settings, tmp_path: Path) -> None:
    given = write(tmp_path / "signs.npz", arrays(0, class_names=np.array(list("abcd"))))
    first = data.add(settings, "signs", given)
    assert data.add(settings, "signs", given) == first

    write(given, arrays(1))
    second = data.add(settings, "signs", given)
    given.unlink()
    assert first.rev != second.rev and data.resolve(settings, "signs") == second
    assert (data.describe(settings, first)["class_names"], data.describe(settings, second)["class_names"]) == (
        ["a", "b", "c", "d"],
        None,
    )
    for seed, ref in enumerate((first, second)):
        found = npz.read_array(data.read(settings, ref), "x_train")
        assert np.array_equal(found, arrays(seed)["x_train"])
    assert data.registered(settings) == [second]


def test_a_corrupt_remote_is_detected_and_adding_again_mends_it(settings: Settings, tmp_path: Path) -> None:
    given = write(tmp_path / "signs.npz", arrays())
    ref = data.add(settings, "signs", given)
    (stored,) = objects(settings)
    bytes_ = bytearray(stored.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    stored.chmod(0o644)
    stored.write_bytes(bytes_)
    with pytest.raises(StoreError, match=f"SHA-256 {ref.sha256}, got .*vetgate data add signs"):
        data.read(settings, ref)
    assert not list((settings.home / "data-cache").glob("*"))

    stored.unlink()
    with pytest.raises(StoreError, match=r"data remote .* cannot be used.*VETGATE_DATA_REMOTE"):
        data.read(settings, ref)

    assert data.add(settings, "signs", given) == ref
    again = data.read(settings, ref)
    assert again.read_bytes() == given.read_bytes()
    again.chmod(0o644)
    again.write_bytes(b"changed behind our back")
    assert data.read(settings, ref).read_bytes() == given.read_bytes()


def test_what_a_killed_run_left_is_no_obstacle(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write(tmp_path / "signs.npz", arrays())
    command = [sys.executable, "-c", "from tasks.data.reference import *; from tasks.settings import *; import sys\n"]
    command[-1] += f"add(load_settings(home={str(settings.home)!r}), 'signs', {str(given)!r})"
    adding = subprocess.Popen(command)
    while not list(settings.home.glob(".data-*/new/.git")):
        assert adding.poll() is None
        time.sleep(0.01)
    adding.kill()
    adding.wait()
    assert not (settings.home / "data").exists()

    # a git hook runs with these set; the registry is a repository of its own all the same
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    ref = data.add(settings, "signs", given)
    (settings.home / "data" / ".git" / "index.lock").touch()
    changed = data.add(settings, "signs", write(tmp_path / "more.npz", arrays(1)))
    assert changed.rev != ref.rev and data.resolve(settings, "signs") == changed
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_is_an_error_and_loses_nothing(shared: Settings, tmp_path: Path) -> None:
    random = np.random.RandomState(0).randint(0, 256, (4000, 5, 4, 3)).astype(np.uint8)
    given = write(tmp_path / "big.npz", arrays(x_train=random, y_train=np.arange(4000) % 4))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from tasks.data import reference as data\n"
        "from tasks.settings import load_settings\n"
        "s = load_settings(home=Path(sys.argv[1])); resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))\n"
        "try:\n    data.add(s, 'big', Path(sys.argv[2]))\nexcept Exception as e: print(type(e).__name__, e)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(shared.home), str(given)], capture_output=True, text=True)
    assert ran.stdout.startswith("StoreError") and "File too large" in ran.stdout, ran.stdout + ran.stderr
    assert [ref.name for ref in data.registered(shared)] == ["digits"]


def test_an_s3_remote_serves_and_an_unreachable_one_is_an_error(tmp_path: Path, s3_endpoint: str) -> None:
    remote = f"s3://vetgate/{uuid.uuid4().hex}"
    settings = load_settings(home=tmp_path / "home", data_remote=remote, s3_endpoint=s3_endpoint)
    given = write(tmp_path / "signs.npz", arrays())
    ref = data.add(settings, "signs", given)
    assert data.read(settings, ref).read_bytes() == given.read_bytes()
    assert "SECRET" not in (settings.home / "data" / ".dvc" / "config").read_text().upper()
    for cached in (settings.home / "data-cache").glob("*"):
        cached.unlink()

    import boto3

    bucket = boto3.resource("s3", endpoint_url=s3_endpoint).Bucket("vetgate")
    (stored,) = bucket.objects.filter(Prefix=remote.removeprefix("s3://vetgate/"))
    stored.put(Body=bytes(given.stat().st_size))
    with pytest.raises(StoreError, match="it is corrupt"):
        data.read(settings, ref)
    assert data.add(settings, "signs", given) == ref
    assert stored.get()["Body"].read() == given.read_bytes()

    closed = load_settings(home=settings.home, data_remote=remote, s3_endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreError, match=f"data remote {remote} .*VETGATE_DATA_REMOTE"):
        data.read(closed, ref)

    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}"
        silent = load_settings(home=settings.home, data_remote=remote, s3_endpoint=endpoint, remote_seconds=2)
        with pytest.raises(StoreError, match=r"no answer within 2 s; .*VETGATE_S3_ENDPOINT, .*VETGATE_REMOTE_SECONDS"):
            data.read(silent, ref)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((60, 5, 4), np.uint8)}, r"x_train \(N, H, W, C\) uint8"),
        ({"x_train": np.zeros((60, 5, 4, 3), np.float32)}, r"uint8 with C 1 or 3, got \(60, 5, 4, 3\) float32"),
        ({"x_test": np.zeros((20, 4, 4, 3), np.uint8)}, "x_test of the shape"),
        ({"x_test": np.zeros((0, 5, 4, 3), np.uint8), "y_test": np.zeros(0, np.int64)}, "x_test"),
        ({"y_train": np.zeros(60, np.int32)}, r'int64, got \(60,\) int32; convert it with .astype\("int64"\)'),
        ({"y_train": np.zeros(59, np.int64)}, r"y_train \(60,\) int64"),
        ({"y_test": np.full(20, -1)}, "labels from 0 to 3"),
        ({"class_names": np.array(["a", "b", "c"])}, "labels from 0 to 2"),
        ({"class_names": np.arange(4)}, "class_names"),
        ({"track_train": np.zeros(59, np.int16)}, "track_train"),
        ({"trakc_train": np.zeros(60, np.int16)}, "got .*trakc_train"),
        ({"x_train": np.asfortranarray(np.ones((60, 5, 4, 3), np.uint8))}, "C order"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert npz.contents(write(tmp_path / "right.npz", arrays()))["classes"] == 4
    with pytest.raises(NotUnderstood, match=message):
        npz.contents(write(tmp_path / "wrong.npz", arrays(**change)))


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_loaded(settings: Settings, tmp_path: Path) -> None:
    canary = tmp_path / "loaded"
    given = write(tmp_path / "evil.npz", arrays(y_train=np.array([Canary(canary)] * 60, dtype=object)))
    with pytest.raises(NotUnderstood, match="pickled objects, never loaded"):
        data.add(settings, "evil", given)
    assert not canary.exists() and not (settings.home / "data").exists()
    np.load(given, allow_pickle=True)["y_train"]
    assert canary.exists()


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.npz", arrays()).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 255
    missing = write(tmp_path / "missing.npz", {"x_train": arrays()["x_train"]}).read_bytes()
    for wrong in (whole[: len(whole) // 2], bytes(damaged), b"", b"\x80\x04K\x01.", missing):
        (tmp_path / "wrong.npz").write_bytes(wrong)
        with pytest.raises(NotUnderstood, match=r"wrong.npz: expected"):
            npz.contents(tmp_path / "wrong.npz")


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 32, 5, 4, 3)})
    given = write(tmp_path / "wrong.npz", {k: v for k, v in arrays().items() if k != "x_train"})
    with zipfile.ZipFile(given, "a") as archive:
        archive.writestr("x_train.npy", header.getvalue() + bytes(60))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NotUnderstood, match="does not fill its"):
        npz.contents(given)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16


def test_large_images_are_fewer_so_that_they_fit_into_memory(shared: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = data.resolve(shared, "digits")

    def counts() -> dict[str, int]:
        paths = data.materialise(shared, ref, (1, 8, 8))
        return {name: len(load_file(getattr(paths, name))["y"]) for name in ("invert", "confirm", "repair", "test")}

    assert min((whole := counts()).values()) > 100
    # as much as a hundred of these images take
    monkeypatch.setattr(data, "BYTES", 100 * 4 * 64)
    monkeypatch.setattr(data, "FEWEST", 20)
    assert counts() == {"invert": 50, "confirm": 50, "repair": 100, "test": 100}
    monkeypatch.setattr(data, "BYTES", 1)
    assert set(counts().values()) == {data.FEWEST}
    monkeypatch.undo()
    assert counts() == whole

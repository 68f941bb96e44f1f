"""What is fetched is bounded before and while it is copied, and only the files that are asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.store.base import LARGEST_READ, Store, check_files, fetch_files
from tasks.store.directory import DirectoryStore
from vetgate.errors import Altered, Denied, StoreError


def test_files_of_together_more_bytes_than_they_may_be_are_denied(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        store.create(f"vetted/m/{name}", b"four")
    assert fetch_files(store, "vetted/m", tmp_path / "all", ["a", "b", "c"], most=12).is_dir()
    with pytest.raises(Denied, match="at most 3 bytes under vetted/m/c, got 4"):
        fetch_files(store, "vetted/m", tmp_path / "some", ["a", "b", "c"], most=11)
    assert sorted(os.listdir(tmp_path / "some")) == ["a", "b"]
    with pytest.raises(Denied, match="at most 3 bytes"):
        store.fetch("vetted/m/a", tmp_path / "one", most=3)
    assert not (tmp_path / "one").exists()


def test_what_lies_beside_them_is_not_fetched_and_what_is_missing_is_said(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b", "README"):
        store.create(f"vetted/m/{name}", b"four")
    assert os.listdir(fetch_files(store, "vetted/m", tmp_path / "one", ["a"], most=4)) == ["a"]
    with pytest.raises(StoreError, match="expected vetted/m to hold c"):
        fetch_files(store, "vetted/m", tmp_path / "two", ["a", "c"], most=100)
    with pytest.raises(Altered, match="others: README, c; restore"):
        check_files(store, "vetted/m", ["a", "b", "c"])
    with pytest.raises(StoreError, match="no file at all"):
        check_files(store, "vetted/n", ["a"])
    check_files(store, "vetted/m", ["a", "b", "README"])


def test_an_object_of_terabytes_is_told_from_others_without_being_read(tmp_path: Path) -> None:
    store, path = DirectoryStore(tmp_path), tmp_path / "submissions" / "x.json"
    path.parent.mkdir()
    for size in (LARGEST_READ + 1, 1 << 42):
        with path.open("wb") as sparse:
            sparse.truncate(size)
        etag = store.etag("submissions/x.json")
        assert etag.startswith(f"{size}-") and store.etag("submissions/x.json") == etag
    store.replace("submissions/x.json", b"ours", if_match=etag)
    assert store.read("submissions/x.json") == b"ours"


def a_link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def a_pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def a_link_to_what_never_ends(path: Path, secret: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("lay", [a_link, a_pipe, a_link_to_what_never_ends])
def test_in_a_directory_only_plain_files_are_read(tmp_path: Path, lay: Callable[[Path, Path], None]) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret of this host")
    store, path = DirectoryStore(tmp_path / "store"), tmp_path / "store" / "quarantine" / "README"
    path.parent.mkdir(parents=True)
    lay(path, secret)
    for ask in (store.read, store.etag, lambda key: store.fetch(key, tmp_path / "out")):
        with pytest.raises(StoreError, match=r"plain file|no link"):
            ask("quarantine/README")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("folder", "others"), [("quarantine", False), ("quarantine/m", False), ("vetted/m", True)])
def test_what_suppliers_handed_in_is_not_for_others_of_the_machine(tmp_path: Path, folder: str, others: bool) -> None:
    before = os.umask(0o022)
    try:
        DirectoryStore(tmp_path / "store").create(f"{folder}/model.onnx", b"weights")
    finally:
        os.umask(before)
    mode = (tmp_path / "store" / folder).stat().st_mode
    assert bool(mode & (stat.S_IROTH | stat.S_IXOTH)) is others

"""Taking a submission in: exact bytes, no links, nothing left after an error."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vetgate.errors import BadSubmission, NotUnderstood, StoreError
from vetgate.formats.manifest import FileEntry, Manifest, hash_directory, take_in


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "in"
    directory.mkdir()
    (directory / "submission.yaml").write_text("name: x\n")
    (directory / "model.onnx").write_bytes(b"\x01" * 3000)
    return directory


def test_the_copy_has_the_bytes_and_the_manifest_their_digests(source: Path, tmp_path: Path) -> None:
    manifest = take_in(source, tmp_path / "a" / "out")
    digest = hashlib.sha256(b"\x01" * 3000).hexdigest()
    assert manifest.files[0] == FileEntry("model.onnx", 3000, digest)
    assert manifest.digests["model.onnx"] == digest
    assert manifest == hash_directory(source) == hash_directory(tmp_path / "a" / "out")
    assert (tmp_path / "a" / "out" / "model.onnx").read_bytes() == b"\x01" * 3000
    assert (tmp_path / "a" / "out" / "model.onnx").stat().st_mode & 0o222 == 0


def test_the_identity_follows_every_byte_and_every_name(source: Path) -> None:
    before = hash_directory(source).sha256
    assert before == hash_directory(source).sha256
    (source / "model.onnx").write_bytes(b"\x01" * 2999 + b"\x02")
    changed = hash_directory(source).sha256
    (source / "model.onnx").rename(source / "other.onnx")
    assert len({before, changed, hash_directory(source).sha256}) == 3


def test_a_manifest_reads_back_from_json(source: Path) -> None:
    manifest = hash_directory(source)
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("field", ["path", "size", "sha256"])
def test_an_altered_manifest_is_refused(field: str, source: Path) -> None:
    blob = hash_directory(source).to_json()
    blob["files"][0][field] = {"path": "../model.onnx", "size": -1, "sha256": "00"}[field]
    with pytest.raises(StoreError):
        Manifest.from_json(blob)
    with pytest.raises(StoreError):
        Manifest.from_json({"files": [{"path": "a"}]})


def make_bad(kind: str, source: Path) -> None:
    match kind:
        case "a symbolic link":
            (source / "model.onnx").unlink()
            (source / "model.onnx").symlink_to("/etc/hostname")
        case "a hard link":
            (source.parent / "secret").write_text("secret")
            os.link(source.parent / "secret", source / "LICENSE")
        case "a directory":
            (source / "weights").mkdir()
        case "a pipe":
            os.mkfifo(source / "README")
        case "a hidden file":
            (source / ".hidden").write_text("x")
        case "a strange name":
            (source / "a\nb").write_text("x")
        case "names that differ in case":
            (source / "MODEL.onnx").write_text("x")
        case "too many files":
            for i in range(20):
                (source / f"f{i}").write_text("x")
        case "too many bytes":
            (source / "README").write_bytes(b"x" * 20_000)


KINDS = [
    "a symbolic link",
    "a hard link",
    "a directory",
    "a pipe",
    "a hidden file",
    "a strange name",
    "names that differ in case",
    "too many files",
    "too many bytes",
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_submission_may_not_hold_is_refused_and_leaves_nothing(kind: str, source: Path, tmp_path: Path) -> None:
    make_bad(kind, source)
    with pytest.raises(NotUnderstood) as error:
        take_in(source, tmp_path / "out", max_bytes=10_000, max_files=16)
    assert error.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    with pytest.raises(NotUnderstood):
        hash_directory(source, max_bytes=10_000)


def test_a_missing_directory_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission, match="expected a directory"):
        take_in(tmp_path / "nowhere", tmp_path / "out")


def test_what_is_there_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_text("kept")
    with pytest.raises(StoreError, match="File exists"):
        take_in(source, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_text() == "kept"


def test_a_full_disk_is_an_error_that_leaves_nothing(source: Path, tmp_path: Path) -> None:
    code = f"""
        import resource
        from pathlib import Path
        from vetgate.errors import StoreError
        from vetgate.formats.manifest import take_in
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            take_in(Path({str(source)!r}), Path({str(tmp_path / "out")!r}))
        except StoreError as error:
            assert "make room" in str(error), error
            raise SystemExit(error.exit_code)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("swapped", ["file", "folder", "above"])
def test_what_is_exchanged_for_a_link_while_it_is_copied_leads_nowhere(tmp_path: Path, swapped: str) -> None:
    within, elsewhere = tmp_path / "artifacts", tmp_path / "keys" / "given"
    source = within / "run" / "given"
    for folder, data in ((source, b"handed in"), (elsewhere, b"a secret")):
        folder.mkdir(parents=True)
        (folder / "README").write_bytes(data)

    def swap(names: list[str]) -> None:
        what = {"file": source / "README", "folder": source, "above": source.parent}[swapped]
        other = {"file": elsewhere / "README", "folder": elsewhere, "above": elsewhere.parent}[swapped]
        what.rename(within / "aside")
        what.symlink_to(other)

    if swapped == "file":
        with pytest.raises(NotUnderstood, match="a symbolic link"):
            take_in(source, tmp_path / "out", within=within, check=swap)
        return
    take_in(source, tmp_path / "out", within=within, check=swap)
    assert (tmp_path / "out" / "README").read_bytes() == b"handed in"
    with pytest.raises(NotUnderstood, match="expected a directory"):
        take_in(source, tmp_path / "again", within=within)
    assert not (tmp_path / "again").exists()

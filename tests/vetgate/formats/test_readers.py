"""A format is what its file says; one that is not known is refused everywhere, never read as another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vetgate.errors import NotUnderstood
from vetgate.formats.inspect import inspect_bytes, inspect_model
from vetgate.formats.load import load_members
from vetgate.formats.readers import Format, accepted, format_of, formats
from vetgate.formats.submission import parse_submission
from vetgate.verdict.policy import Policy

ROOT = Path(__file__).parents[3]
GIVEN = (
    "{{name: x, supplier: x, task: image-classification, model: model.bin, format: {}, input_shape: [1, 8, 8],"
    " classes: 10, reference_data: null}}"
)


def test_each_format_stands_in_one_file_and_says_what_to_hand_in() -> None:
    folder = ROOT / "vetgate" / "formats" / "readers"
    assert set(formats()) == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert all(each.accepts in accepted() for each in formats().values())
    written = {name for name, each in formats().items() if each.form is not None}
    assert set(Policy(name="x", required=("y",)).promote_formats) == written == {"onnx", "safetensors"}


def test_they_are_known_without_torch_or_onnx() -> None:
    program = (
        "import sys, vetgate.formats.readers as r; r.formats(); sys.exit(bool({'torch', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize("data", [b"", b"\x08\x07", b"x" * 64])
def test_a_format_that_is_not_known_is_refused_at_every_door(tmp_path: Path, data: bytes) -> None:
    submission = parse_submission(GIVEN.format("tensorflow"))
    (tmp_path / "submission.yaml").write_text(GIVEN.format("tensorflow"))
    (tmp_path / "model.bin").write_bytes(data)
    for door in (
        lambda: format_of(submission),
        lambda: inspect_bytes(tmp_path, submission),
        lambda: inspect_model({"model.bin": b"x"}, submission),
        lambda: load_members({"model.bin": data}, submission),
    ):
        with pytest.raises(NotUnderstood, match=r"got 'tensorflow'.*hand in|expected format"):
            door()


def test_a_format_reads_its_own_bytes_and_no_other_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: list[Mapping[str, bytes]] = []

    def inspect(members: Mapping[str, bytes], submission: Any) -> None:
        read.append(members)

    own = Format(
        accepts="a made-up archive",
        sniff=lambda data: data.startswith(b"PK\x03\x04"),
        inspect=inspect,
        canonical=lambda members, submission: (submission, b""),
        belongs=lambda name: name.endswith(".part"),
    )
    monkeypatch.setitem(formats(), "archive", own)
    submission = parse_submission(GIVEN.format("archive"))
    (tmp_path / "submission.yaml").write_text(GIVEN.format("archive"))
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04 and more")
    (tmp_path / "weights.part").write_bytes(b"PK\x03\x04, a part")
    members = {"model.bin": b"PK\x03\x04 and more", "weights.part": b"PK\x03\x04, a part"}
    assert inspect_bytes(tmp_path, submission) == members
    assert read == [members]
    with pytest.raises(NotUnderstood, match="one in format archive; vet it as it was handed in"):
        load_members({"model.bin": b"PK\x03\x04 and more"}, submission)
    (tmp_path / "model.bin").write_bytes(b"other bytes")
    with pytest.raises(NotUnderstood, match=r"model in format archive in model\.bin, got something else"):
        inspect_bytes(tmp_path, submission)
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(NotUnderstood, match="zip archive"):
        inspect_bytes(tmp_path, parse_submission(GIVEN.format("onnx")))

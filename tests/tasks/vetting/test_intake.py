"""The seed of a submission: no supplier can foresee it, and what is our own has one that says which run it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.settings import Settings
from tasks.vetting import intake
from vetgate.errors import VetgateError

YAML = """
name: digits-cnn
supplier: Example Vision Ltd
task: image-classification
model: model.safetensors
format: safetensors
input_shape: [1, 8, 8]
classes: 10
architecture: small-cnn
"""


@pytest.fixture
def handed_in(tmp_path: Path) -> Path:
    directory = tmp_path / "handed-in"
    directory.mkdir()
    (directory / "submission.yaml").write_text(YAML)
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def test_no_two_installations_have_the_same_seed_for_the_same_bytes(tmp_path: Path, handed_in: Path):
    one, other = (intake.take(Settings(home=tmp_path / name), handed_in) for name in ("one", "other"))
    assert one.id == other.id and one.seed != other.seed
    assert intake.take(Settings(home=tmp_path / "one"), handed_in).seed == one.seed, "the same again"


def test_a_given_seed_is_the_same_everywhere_and_so_are_those_of_later_runs(tmp_path: Path, handed_in: Path):
    one, other = (intake.take(Settings(home=tmp_path / name), handed_in, seed=7) for name in ("one", "other"))
    assert one.seed == other.seed == 7 == one.seed_for()
    assert one.seed_for("repaired") == other.seed_for("repaired") not in (7, one.seed_for("again"))


@pytest.mark.parametrize("wrong", ["no description", "another encoding", "a link"])
def test_an_error_names_the_directory_that_was_handed_in_and_no_copy_of_it(tmp_path: Path, handed_in: Path, wrong: str):
    described = handed_in / "submission.yaml"
    described.unlink()
    if wrong == "another encoding":
        described.write_bytes(YAML.replace("Vision", "Visión").encode("latin-1"))
    if wrong == "a link":
        described.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VetgateError) as caught:
        intake.take(Settings(home=tmp_path / "one"), handed_in)
    assert "work" not in str(caught.value) and "copy in" not in str(caught.value)
    if wrong == "no description":
        assert str(handed_in) in str(caught.value)


def test_a_seed_cannot_be_changed_by_handing_in_again(tmp_path: Path, handed_in: Path):
    settings = Settings(home=tmp_path / "one")
    first = intake.take(settings, handed_in)
    assert intake.take(settings, handed_in, seed=7).seed == first.seed

"""A digest changes with what computes and stays with what is only said about it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

import vetgate.digest
from vetgate.digest import canonical_json, code_digest, sha256_json

PACKAGE = Path(vetgate.digest.__file__).parent


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the library that a test may edit."""
    copy = tmp_path / "vetgate"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(vetgate.digest, "PACKAGE", copy)
    return copy


def rewrite(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_canonical_json_is_sorted_unspaced_and_utf8():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()


def test_the_digest_does_not_depend_on_the_order_of_keys():
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 2, "b": 1})


def test_the_digest_of_nothing_is_known():
    assert sha256_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("value", [math.nan, math.inf, {"deep": [-math.inf]}])
def test_what_is_not_finite_has_no_digest(value):
    with pytest.raises(ValueError):
        sha256_json(value)


def test_a_copy_of_the_code_has_the_same_digest(package):
    copied = code_digest("detect", "neural_cleanse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vetgate.digest, "PACKAGE", PACKAGE)
        assert code_digest("detect", "neural_cleanse") == copied


def test_a_reworded_comment_or_docstring_voids_nothing(package):
    before = code_digest("detect", "neural_cleanse")
    rewrite(package / "detect" / "neural_cleanse.py", '"""Neural Cleanse:', '"""Reworded:')
    rewrite(package / "search.py", "# keeps tanh invertible", "# reworded")
    old = "down after as many bad ones."
    rewrite(package / "search.py", old, "and down again.")
    assert code_digest("detect", "neural_cleanse") == before


def test_a_changed_number_voids_the_method_that_imports_it_and_no_other(package):
    before = {name: code_digest("detect", name) for name in ("neural_cleanse", "spectral_signatures")}
    rewrite(package / "search.py", "patience: int = 3", "patience: int = 4")
    assert code_digest("detect", "neural_cleanse") != before["neural_cleanse"]
    assert code_digest("detect", "spectral_signatures") == before["spectral_signatures"]


def test_what_is_imported_by_what_is_imported_counts_too(package):
    before = code_digest("detect", "neural_cleanse")
    rewrite(package / "errors.py", "exit_code: ClassVar[int] = 2", "exit_code: ClassVar[int] = 9")
    assert code_digest("detect", "neural_cleanse") != before


def test_a_method_that_is_not_there_has_no_digest():
    with pytest.raises(FileNotFoundError):
        code_digest("detect", "no_such_method")

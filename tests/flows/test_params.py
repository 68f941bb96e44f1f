"""params.yaml: a guard's section is held against the function that fits it."""

from __future__ import annotations

from pathlib import Path

import pytest

import vetgate.guard  # noqa: F401 - registers the guards
from flows.params import load_params
from vetgate.errors import BadPolicy
from vetgate.guard.contract import GUARDS


def read(tmp_path: Path, text: str):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_params(path)


def test_the_hyper_parameters_of_a_guard_are_those_of_its_fitting(tmp_path: Path) -> None:
    params = read(tmp_path, "strip: {overlays: 8}\nneural_cleanse: {}\n")
    assert params.guard == {"strip": GUARDS["strip"].defaults | {"overlays": 8}}
    assert list(params.detect) == ["neural_cleanse"] and params.repair == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("strip: {overlay: 8}", "section strip does not fit vetgate/guard/strip.py: overlay"),
        ("strip: {overlays: many}", "section strip does not fit vetgate/guard/strip.py: overlays"),
        ("guarded: {}", "expected sections of methods or data, bank"),
    ],
)
def test_what_does_not_fit_or_is_no_guard_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadPolicy, match=said):
        read(tmp_path, text)

from __future__ import annotations

import pytest

from vetgate.formats.model_name import MODEL_NAME, alike


@pytest.mark.parametrize("name", ["digits", "a", "a.b_c-9", "v1.2", "x" * 63, "product", "my-prod", "thirdparty"])
def test_plain_names_are_names(name: str) -> None:
    assert MODEL_NAME.fullmatch(name) and alike(name, [f"prod.{name}", f"thirdparty.{name}", "prod.other"]) is None


@pytest.mark.parametrize(
    "name",
    [
        "digits.",
        "a..",
        ".a",
        "prod.digits",
        "x.prod.y",
        "xprod.y",
        "thirdparty.x",
        "Digits",
        "dígits",
        "x" * 64,
        "a\n",
        "",
    ],
)
def test_what_could_be_taken_for_another_is_no_name(name: str) -> None:
    assert MODEL_NAME.fullmatch(name) is None


@pytest.mark.parametrize(
    "other",
    [
        "prod.Digits",
        "thirdparty.DIGITS",
        "PROD.digits",
        "prod.ｄigits",
        "ｐrod.digits",
        "thirdparty.di\u200bgits",
        "prod.digits.",
        "prod.digits ",
        "prod.digit\u017f",
    ],
)
def test_a_registered_model_that_reads_like_it_is_found(other: str) -> None:
    assert alike("digits", ["prod.digits", "thirdparty.digits", "digits", other, "prod.other"]) == other

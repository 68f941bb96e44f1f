"""Which images a request asks about, in each form of the protocol, and what is refused and why."""

from __future__ import annotations

import json
from typing import Any

import pandas
import pytest
import torch

from flows.production.images import images_in, most_bytes
from vetgate.errors import BadInput

SHAPE, MOST = (2, 3, 4), 5
X = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
NESTED: list[Any] = X.tolist()
FLAT: list[Any] = X.flatten(1).tolist()
COLUMNS = [f"pixel_{i}" for i in range(24)]
GOOD = {
    "inputs": {"inputs": NESTED},
    "inputs by name": {"inputs": {"image": NESTED}},
    "instances": {"instances": NESTED},
    "instances by name": {"instances": [{"image": image} for image in NESTED]},
    "a cell an image": {"dataframe_split": {"columns": ["image"], "data": [[image] for image in NESTED]}},
    "a cell a pixel": {"dataframe_split": {"index": [0, 1, 2], "columns": COLUMNS, "data": FLAT}},
    "a cell an image in records": {"dataframe_records": [{"image": image} for image in NESTED]},
    "a cell a pixel in records": {"dataframe_records": [dict(zip(COLUMNS, row, strict=True)) for row in FLAT]},
    "with no parameters": {"inputs": NESTED, "params": {}},
    "as pandas writes it": {"dataframe_split": pandas.DataFrame(FLAT, columns=COLUMNS).to_dict(orient="split")},
}


@pytest.mark.parametrize("asked", GOOD.values(), ids=GOOD)
def test_every_form_says_the_same(asked: dict[str, Any]) -> None:
    assert torch.equal(images_in(json.dumps(asked).encode(), SHAPE, MOST), X)


def test_integers_are_pixels_too() -> None:
    found = images_in(json.dumps({"inputs": [[[[0, 1], [1, 0]]]]}).encode(), (1, 2, 2), MOST)
    assert found.tolist() == [[[[0.0, 1.0], [1.0, 0.0]]]]


def with_pixel(value: str) -> str:
    image = json.dumps(NESTED[:1])
    first = json.dumps(NESTED[0][0][0][0])
    return f'{{"inputs": {image.replace(first, value, 1)}}}'


BAD = {
    "nothing": ("", "expected JSON"),
    "no JSON": ("{inputs: 1}", "expected JSON"),
    "no UTF-8": (b'{"inputs": "\xff"}', "expected JSON"),
    "nested without end": ('{"inputs": ' + "[" * 100_000, "at most 5 images in a request, with at most 114 lists"),
    "without an end": ('{"inputs": ' + "[" * 60, "expected JSON"),
    "UTF-16": (json.dumps({"inputs": NESTED}).encode("utf-16"), "expected JSON in UTF-8"),
    "UTF-16 without a mark": (json.dumps({"inputs": NESTED}).encode("utf-16-le"), "expected JSON in UTF-8"),
    "UTF-32": (json.dumps({"inputs": NESTED}).encode("utf-32-be"), "expected JSON in UTF-8"),
    "a form twice": ('{"inputs": [], ' + json.dumps({"inputs": NESTED})[1:], "a key given twice"),
    "a name twice": (f'{{"dataframe_records": [{{"a": 1, "a": {json.dumps(NESTED[0])}}}]}}', "a key given twice"),
    "nested deeply": ('{"inputs": ' + "[" * 300 + "]" * 300 + "}", "expected"),
    "a list": (json.dumps(NESTED), "expected a JSON object"),
    "no form": ("{}", "expected exactly one of"),
    "another form": ('{"images": []}', "expected exactly one of"),
    "two forms": (json.dumps({"inputs": NESTED, "instances": NESTED}), "got 'inputs', 'instances'"),
    "parameters": (json.dumps({"inputs": NESTED, "params": {"action": "log-only"}}), "got 'inputs', 'params'"),
    "a text": ('{"inputs": "x"}', "expected a list of images in inputs, got a text"),
    "null": ('{"instances": null}', "got null"),
    "two inputs": (json.dumps({"inputs": {"a": NESTED, "b": NESTED}}), "got 2 names"),
    "two names": (json.dumps({"instances": [{"a": NESTED[0], "b": NESTED[0]}]}), "got 2 names"),
    "some by name": (json.dumps({"instances": [{"a": NESTED[0]}, NESTED[1]]}), "expected one array under one name"),
    "empty": ('{"inputs": []}', "expected images"),
    "no records": ('{"dataframe_records": []}', "expected images"),
    "one image alone": (json.dumps({"inputs": NESTED[0]}), r"expected images \(M, 2, 3, 4\)"),
    "another shape": (json.dumps({"inputs": torch.rand(1, 2, 4, 3).tolist()}), r"got \(1, 2, 4, 3\)"),
    "channels last": (json.dumps({"inputs": X.permute(0, 2, 3, 1).tolist()}), r"got \(3, 3, 4, 2\)"),
    "ragged": ('{"inputs": [[[[0, 1], [1]]]]}', "ragged"),
    "too many": (json.dumps({"inputs": NESTED * 2}), "expected at most 5 images in a request, got 6"),
    "NaN": (with_pixel("NaN"), "expected finite pixels, got NaN"),
    "infinity": (with_pixel("-Infinity"), "got -Infinity"),
    "beyond all numbers": (with_pixel("1e999"), "expected finite pixels"),
    "beyond float32": (with_pixel("1e300"), "expected finite pixels"),
    "beyond integers": (with_pixel("1" + "0" * 400), "expected"),
    "digits without end": (with_pixel("1" * 5000), "expected JSON"),
    "bytes": (with_pixel("255"), "divide bytes by 255"),
    "below": (with_pixel("-0.001"), "between 0 and 1"),
    "a pixel as a text": (with_pixel('"0.5"'), "expected numbers only"),
    "no pixel": (with_pixel("null"), "expected numbers only"),
    "true among numbers": ('{"inputs": [[[[true, 0.5], [1, 1]]]]}', "expected numbers only"),
    "a number among lists": ('{"inputs": [[[0.5, [1, 1]]]]}', "expected numbers only"),
    "only true": ('{"inputs": [[[[true, false], [true, true]]]]}', "expected numbers only"),
    "an object as a pixel": (with_pixel("{}"), "expected"),
    "no columns": ('{"dataframe_split": {"data": []}}', "expected columns and data"),
    "no rows": ('{"dataframe_split": {"columns": [], "data": 3}}', "expected a list of rows"),
    "too few cells": (
        '{"dataframe_split": {"columns": [0, 1], "data": [[0, 1]]}}',
        "rows of 1 or of 24 cells, got",
    ),
    "no cells": ('{"dataframe_split": {"columns": [], "data": [[]]}}', "got one of 0"),
    "lists in cells": (
        json.dumps({"dataframe_split": {"columns": COLUMNS, "data": [[[0]] * 24]}}),
        "rows of 1 or of 24 cells",
    ),
    "other columns": ('{"dataframe_records": [{"a": 1}, {"b": 1}]}', "the same columns"),
    "rows that are none": ('{"dataframe_records": [1]}', "expected a list of rows"),
}


@pytest.mark.parametrize(("body", "reason"), BAD.values(), ids=BAD)
def test_what_is_no_image_is_refused_with_a_reason_and_a_remedy(body: str | bytes, reason: str) -> None:
    with pytest.raises(BadInput, match=reason) as caught:
        images_in(body.encode() if isinstance(body, str) else body, SHAPE, MOST)
    said = str(caught.value)
    assert "expected" in said and "got" in said and ";" in said and len(said) < 600


HUGE = 500_000
MANY = {
    "lists": "[]",
    "lists of one": "[0]",
    "objects": "{}",
    "objects of one": '{"a":0}',
    "numbers": "0",
    "texts": '"a"',
    "lists after a text that does not end": '[],"\\\\\\""',
}


@pytest.mark.parametrize("one", MANY.values(), ids=MANY)
def test_more_than_so_many_images_have_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch, one: str
) -> None:
    monkeypatch.setattr("json.loads", lambda *given, **more: pytest.fail("parsed"))
    with pytest.raises(BadInput, match=r"at most 5 images in a request, with at most \d+ .*, got .*; send nested"):
        images_in(f'{{"inputs": [{",".join([one] * HUGE)}]}}'.encode(), SHAPE, MOST)


def test_names_may_hold_what_json_is_made_of() -> None:
    columns = [f'pixel "[{i}]", {{{i},,,,,,,,,,,,,,,,,,,,,[[[[[[\\' for i in range(24)]
    assert any(json.dumps(columns).count(mark) > 5 * 24 for mark in "[,")
    for form in (
        {"dataframe_split": {"columns": columns, "data": FLAT}},
        {"dataframe_records": [dict(zip(columns, row, strict=True)) for row in FLAT]},
    ):
        assert torch.equal(images_in(json.dumps(form).encode(), SHAPE, MOST), X)


@pytest.mark.parametrize("form", GOOD)
def test_as_many_images_as_may_be_are_taken_in_every_form(form: str) -> None:
    shape, most = (1, 2, 2), 300
    x = torch.rand(most, *shape, generator=torch.Generator().manual_seed(1))
    names = [str(i) for i in range(4)]
    frame = pandas.DataFrame(x.flatten(1).tolist(), columns=names, index=[f"row {i}" for i in range(most)])
    asked = {
        "inputs": {"inputs": x.tolist()},
        "inputs by name": {"inputs": {"image": x.tolist()}},
        "instances": {"instances": x.tolist()},
        "instances by name": {"instances": [{"image": image} for image in x.tolist()]},
        "a cell an image": {"dataframe_split": {"columns": ["image"], "data": [[image] for image in x.tolist()]}},
        "a cell an image in records": {"dataframe_records": [{"image": image} for image in x.tolist()]},
        "a cell a pixel in records": {"dataframe_records": frame.to_dict(orient="records")},
    }.get(form, {"dataframe_split": frame.to_dict(orient="split")})
    assert torch.equal(images_in(json.dumps(asked).encode(), shape, most), x)


def test_a_long_text_among_pixels_makes_no_texts_of_all() -> None:
    row = ["a" * 1_000_000, *[0] * 999_999]  # four terabytes of texts
    with pytest.raises(BadInput, match="expected numbers only"):
        images_in(json.dumps({"inputs": [[[row]]]}).encode(), (1, 1, 1_000_000), MOST)


def test_a_body_is_as_long_as_the_images_it_may_hold() -> None:
    longest = json.dumps({"inputs": [[[[-1.2345678901234567e-300] * 4] * 3] * 2] * MOST})
    assert len(longest) < most_bytes(SHAPE, MOST, 1 << 30) < 2 * len(longest) + 65536
    assert most_bytes((3, 1024, 1024), 256, 1 << 25) == 1 << 25

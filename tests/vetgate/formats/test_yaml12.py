from __future__ import annotations

import math

import pytest
import yaml

from vetgate.errors import BadSubmission
from vetgate.formats.submission import dump_submission, parse_submission
from vetgate.formats.yaml12 import dump_plain, load_plain

SUBMISSION = """\
name: digits-cnn
supplier: acme
task: image-classification
model: model.onnx
format: onnx
input_shape: [1, 8, 8]
classes: 10
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # of another kind, or another number, in YAML 1.1
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("y", "y"),
        ("2001-12-14", "2001-12-14"),
        ("0b1010", "0b1010"),
        ("1_000", "1_000"),
        ("010", 10),
        ("0o17", 15),
        ("1e3", 1000.0),
        ("=", "="),
        # alike in both
        ("0x1F", 31),
        ("-7", -7),
        ("+.5", 0.5),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("'10'", "10"),
        ("00000000000000000000000000000012", 12),
        ("[a, 1, {b: 2}]", ["a", 1, {"b": 2}]),
        ("{<<: 1}", {"<<": 1}),
    ],
)
def test_values_are_those_of_the_core_schema(text: str, value: object) -> None:
    found = load_plain(f"field: {text}")["field"]
    assert found == value and type(found) is type(value)


def test_not_a_number_is_one_of_them() -> None:
    assert math.isnan(load_plain("[.nan]")[0])


@pytest.mark.parametrize(
    "text",
    [
        "{a: 1, a: 2}",
        "{a: 1, 'a': 2}",
        "[{b: 1, b: 1}]",
        "{1: 2}",
        "{null: 2}",
        "{[a]: 2}",
        "&x [*x]",
        "{a: &x 1, b: *x}",
        "[[[[[1]]]]]",
        "!!null signs",
        "!!str 10",
        "!!int 0o7",
        "! 10",
        "{!!str a: 1}",
        "!!seq [1]",
        "!!map {a: 1}",
        "!<tag:yaml.org,2002:int> 7",
        "%TAG !e! tag:yaml.org,2002:\n---\n!e!int 7",
        "%TAG !e! tag:yaml.org,2002:\n---\na",
        "%YAML 1.1\n---\na",
        "!!binary aGVsbG8=",
        "!!timestamp 2001-12-14",
        "!!set {a}",
        "!!merge <<",
        "!!python/name:os.system ''",
        "!own thing",
        "a: b: c",
        "%YAML 1.2\n---\na\n---\nb",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises((ValueError, yaml.YAMLError)):
        load_plain(text)


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("text", ["a: 1\n# seen{}b: 2", "a: 'x{}y'", "a: x{}b: 2", "a: 1{}", "{}a: 1"])
def test_what_ends_a_line_for_one_reader_only_is_refused(mark: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"in line [12], which ends a line in YAML 1\.1 only"):
        load_plain(text.format(mark))


@pytest.mark.parametrize("text", ["0x" + "f" * 5000, "0o" + "7" * 6000, "9" * 5000, "-" + "1" * 40, "0" * 33])
def test_a_number_of_too_many_digits_is_refused_and_not_echoed(text: str) -> None:
    with pytest.raises(ValueError, match=rf"of {len(text)} characters; write one of at most 32") as error:
        load_plain(f"[{text}]")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "text", ["1:30", "yes", "0o17", "1e3", "010", "null", "~", "2001-12-14", "<<", "a: b", "ü", ""]
)
def test_text_is_read_back_as_text_by_either_version(text: str) -> None:
    written = dump_plain({"layer": text, "classes": [text, "b"]})
    assert load_plain(written) == yaml.safe_load(written) == {"layer": text, "classes": [text, "b"]}


def test_a_number_of_classes_is_no_time_of_day() -> None:
    with pytest.raises(BadSubmission, match=r"classes.*'1:30'"):
        parse_submission(SUBMISSION.replace("10", "1:30"))
    with pytest.raises(BadSubmission, match="input_shape"):
        parse_submission(SUBMISSION.replace("[1, 8, 8]", "[1, 8, 0:8]"))


def test_names_of_classes_are_taken_as_they_are_written() -> None:
    submission = parse_submission(SUBMISSION.replace("10", "[yes, no, on, 12:30, 1_0]"))
    assert submission.classes == ["yes", "no", "on", "12:30", "1_0"]
    assert parse_submission(dump_submission(submission)) == submission


def test_a_leading_zero_is_no_octal() -> None:
    assert parse_submission(SUBMISSION.replace("10", "012")).n_classes == 12

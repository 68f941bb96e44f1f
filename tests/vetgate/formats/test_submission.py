"""submission.yaml: what is taken, and what is refused with which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vetgate.errors import BadSubmission
from vetgate.formats.plain_text import steering
from vetgate.formats.submission import dump_submission, parse_submission, read_submission

GOOD = """\
name: mnist-cnn
supplier: acme
task: image-classification
model: model.onnx
format: onnx
input_shape: [1, 28, 28]   # C, H, W
classes: 10
reference_data: mnist
"""


def test_a_good_submission_is_read(tmp_path: Path) -> None:
    (tmp_path / "submission.yaml").write_text(GOOD)
    submission = read_submission(tmp_path)
    assert (submission.name, submission.input_shape, submission.n_classes) == ("mnist-cnn", (1, 28, 28), 10)
    assert submission.layer is None and submission.parent is None


def test_classes_may_be_named() -> None:
    assert parse_submission(GOOD.replace("10", "[cat, dog, bird]")).n_classes == 3


def test_a_thousand_named_classes_are_no_burden() -> None:
    names = ", ".join(f"identity {i}" for i in range(1300))
    assert parse_submission(GOOD.replace("10", f"[{names}]")).n_classes == 1300


def test_what_is_written_reads_back() -> None:
    submission = parse_submission(GOOD.replace("10", "[cat, dog]") + "layer: relu\n")
    assert parse_submission(dump_submission(submission)) == submission


def test_an_architecture_counts_only_where_the_weights_are_loaded_into_it() -> None:
    claimed = GOOD + "architecture: small-cnn\n"
    assert parse_submission(claimed).loaded_into is None, "a graph is what it is"
    weights = claimed.replace("model.onnx", "model.safetensors").replace("format: onnx", "format: safetensors")
    assert parse_submission(weights).loaded_into == "small-cnn"


def test_a_graph_is_compared_with_those_of_its_own_structure() -> None:
    kind = "graph-0123456789abcdef"
    assert parse_submission(GOOD + f"architecture: {kind}\n").compared_as == kind
    assert parse_submission(GOOD + "architecture: small-cnn\n").compared_as is None
    assert parse_submission(GOOD).compared_as is None
    weights = GOOD.replace("model.onnx", "model.safetensors").replace("format: onnx", "format: safetensors")
    assert parse_submission(weights + "architecture: small-cnn\n").compared_as == "small-cnn"
    with pytest.raises(BadSubmission, match="architecture must be"):
        parse_submission(weights + f"architecture: {kind}\n")


BAD = {
    "an unknown field": (GOOD + "colour: red\n", "unknown field 'colour'"),
    "a missing field": (GOOD.replace("supplier: acme\n", ""), "'supplier' is missing"),
    "a field given twice": (GOOD + "classes: 11\n", "'classes' is given twice"),
    "another task": (GOOD.replace("image-classification", "detection"), "task"),
    "a path as model": (GOOD.replace("model.onnx", "../model.onnx"), "plain name"),
    "itself as model": (GOOD.replace("model.onnx", "submission.yaml"), "plain name"),
    "a name with a slash": (GOOD.replace("mnist-cnn", "a/b"), "name"),
    "one class": (GOOD.replace("classes: 10", "classes: 1"), "classes"),
    "a class named twice": (GOOD.replace("10", "[cat, cat]"), "each class once"),
    "a class named twice but for spaces": (GOOD.replace("10", "[cat, ' cat']"), "each class once"),
    "a class named by spaces": (GOOD.replace("10", "[cat, '  ']"), "no name is empty"),
    "a class without a name": (GOOD.replace("10", "[cat, '']"), "classes"),
    "a truth value as classes": (GOOD.replace("10", "true"), "classes"),
    "two sizes": (GOOD.replace("[1, 28, 28]", "[28, 28]"), "input_shape"),
    "a size of zero": (GOOD.replace("[1, 28, 28]", "[1, 0, 28]"), "input_shape"),
    "weights without architecture": (GOOD.replace("format: onnx", "format: safetensors"), "needs an architecture"),
    "an unknown architecture": (GOOD + "architecture: resnet9000\n", "small-cnn, preact-resnet, vgg-small"),
    "a parent that is no digest": (GOOD + "parent: abc\n", "parent"),
    "a list": ("- a\n- b\n", "expected a mapping"),
    "no YAML": ("name: [", "expected plain YAML"),
    "a number as field": (GOOD + "1: 2\n", "must be text"),
    "an alias": (GOOD + "layer: &a relu\ntraining_data: *a\n", "alias"),
    "a Python object": (GOOD + "layer: !!python/object/apply:os.getcwd []\n", "expected plain YAML"),
    "nothing": ("", "expected a mapping"),
    "a terminal's command in the supplier": (GOOD.replace("acme", '"a\\e[2J"'), r"supplier, got the control \\x1b"),
    "NUL in the supplier": (GOOD.replace("acme", '"a\\0"'), r"supplier, got the control \\x00"),
    "C1 in the supplier": (GOOD.replace("acme", '"a\\x9b"'), r"supplier, got the control \\x9b"),
    "an override in the supplier": (GOOD.replace("acme", "a\u202eb"), r"line 2, got the control \\u202e"),
    "an override that an escape stands for": (
        GOOD.replace("acme", '"a\\u202eb"'),
        r"supplier, got the control \\u202e",
    ),
    "two lines of a supplier": (GOOD.replace("acme", '"a\\nb"'), r"supplier, got the control \\n"),
    "an isolate in a class": (GOOD.replace("10", "[cat, d\u2066og]"), r"line 7, got the control \\u2066"),
    "a bell in a class": (GOOD.replace("10", '[cat, "d\\a"]'), r"classes, got the control \\x07"),
    "a mark in a layer": (GOOD + "layer: re\u200elu\n", r"line 9, got the control \\u200e"),
    "a control in a field's name": (GOOD + '"a\\e": 1\n', r"a\\x1b, got the control \\x1b"),
    "a control in what is no YAML": (GOOD + "layer: [\u202e", r"line 9, got the control \\u202e"),
    "an override in a comment": (GOOD + "# \u202e no signs\n", r"line 9, got the control \\u202e"),
    "an invisible character in a comment": (GOOD + "# a\u200bb", r"line 9, got the control \\u200b"),
    "an escape in a comment": ("# \x1b[2J\n" + GOOD, r"line 1, got the control \\x1b"),
    "a tag character between fields": (GOOD + "\U000e0041\n", r"line 9, got the control \\U000e0041"),
    "a line that ends for one reader only": (GOOD + "# signs\u2028layer: relu\n", r"line 9, got the control \\u2028"),
    "a next line in a comment": (GOOD + "# signs\x85layer: relu\n", r"line 9, got the control \\x85"),
    "a return that hides a comment": (GOOD + "# signs\rlayer: relu\n", r"line 9, got the control \\r"),
    "thousands of hexadecimal digits": (GOOD.replace("10", "0x" + "f" * 6000), "YAML 1.2.* of 6002 characters"),
    "thousands of octal digits": (GOOD.replace("10", "0o" + "7" * 5000), "YAML 1.2.* of 5002 characters"),
    "thousands of digits in a shape": (GOOD.replace("28, 28", "28, " + "9" * 5000), "YAML 1.2.* of 5000 characters"),
    "a large number of classes": (GOOD.replace("10", "9" * 30), "classes"),
    "a tag": (GOOD.replace("mnist\n", "!!null mnist\n"), "the tag 'tag:yaml.org,2002:null'; write the plain value"),
    "an endless name of a field": (GOOD + f"{'a' * 900}: 1\n", "unknown field 'aaa"),
    "an endless architecture": (GOOD + f"architecture: {'a' * 90_000}\n", "small-cnn, preact-resnet, vgg-small"),
    "a name that ends in a dot": (GOOD.replace("mnist-cnn", "mnist."), "does not end in a dot"),
    "a name with a production prefix": (GOOD.replace("mnist-cnn", "prod.mnist"), "neither 'prod.'"),
    "a name with a prefix inside": (GOOD.replace("mnist-cnn", "x.thirdparty.y"), "nor 'thirdparty.'"),
    "deep nesting": ("name: " + "[" * 50_000, "deep nesting"),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_a_bad_submission_says_what_is_wrong(what: str, tmp_path: Path) -> None:
    text, message = BAD[what]
    (tmp_path / "submission.yaml").write_text(text)
    with pytest.raises(BadSubmission, match=message) as error:
        read_submission(tmp_path)
    assert error.value.exit_code == 4
    assert len(str(error.value)) < 2000
    assert steering(error.value.args[0]) is None


@pytest.mark.parametrize(
    "text", [GOOD.replace("\n", "\r\n"), "\ufeff" + GOOD, GOOD + "# \u0645\u06cc\u200c\u062e\tü\n"]
)
def test_line_ends_of_windows_and_letters_that_join_are_plain_text(text: str) -> None:
    assert parse_submission(text) == parse_submission(GOOD)


def test_a_missing_file_or_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission, match=r"expected a submission\.yaml"):
        read_submission(tmp_path)
    with pytest.raises(BadSubmission, match="No such file"):
        read_submission(tmp_path / "nowhere")


def test_a_link_or_pipe_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(GOOD)
    (tmp_path / "submission.yaml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadSubmission, match="symbolic link"):
        read_submission(tmp_path)
    (tmp_path / "submission.yaml").unlink()
    os.mkfifo(tmp_path / "submission.yaml")
    with pytest.raises(BadSubmission, match="pipe"):
        read_submission(tmp_path)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "submission.yaml").write_bytes(GOOD.replace("acme", "Müller").encode("latin-1"))
    with pytest.raises(BadSubmission, match="UTF-8"):
        read_submission(tmp_path)


def test_what_is_said_of_pixels_reads_back() -> None:
    text = (
        "name: a\nsupplier: b\ntask: image-classification\nmodel: m.onnx\nformat: onnx\ninput_shape: [3, 8, 8]\n"
        "classes: 3\nreference_data: null\nnormalization: {mean: [0.1, 0.2, 0.3], std: [1, 2, 3]}\n"
        "layout: NHWC\ncolor: BGR\noutput: probabilities\n"
    )
    submission = parse_submission(text)
    assert submission.normalization is not None and submission.normalization.std == (1.0, 2.0, 3.0)
    assert parse_submission(dump_submission(submission)) == submission

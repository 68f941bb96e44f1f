"""What vetgate writes in place of what was handed in: one file, the same for the same network, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.models import FIELDS
from vetgate.architectures import ARCHITECTURES
from vetgate.errors import NotUnderstood
from vetgate.formats.canonical import canonical
from vetgate.formats.load import load_members
from vetgate.formats.onnx import graph
from vetgate.formats.onnx.wire import inspect_wire
from vetgate.formats.readers import formats
from vetgate.formats.readers import onnx as graphs
from vetgate.formats.readers import safetensors as reader
from vetgate.formats.submission import Submission, rewritten

MANIFEST = "a" * 64
WEIGHTS = Submission.model_validate(FIELDS | {"classes": 3})
ONNX = Submission.model_validate(
    FIELDS | {"model": "net.onnx", "format": "onnx", "architecture": None, "input_shape": (1, 8, 8), "classes": 3}
)


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ARCHITECTURES["small-cnn"](WEIGHTS.input_shape, WEIGHTS.n_classes).state_dict()


def test_a_graph_is_written_anew_once_and_computes_the_same(cnn: Any) -> None:
    given = cnn.SerializeToString()
    written = canonical({"net.onnx": given}, ONNX)
    assert written is not None and written.data != given and set(written.changes) == {"model", "architecture"}
    described = rewritten(ONNX, written.changes, MANIFEST)
    assert (described.submitted, described.model, described.name) == (MANIFEST, "model.onnx", ONNX.name)
    assert canonical({"model.onnx": written.data}, described) is None
    x = torch.rand(3, *ONNX.input_shape)
    ours = load_members({"model.onnx": written.data}, described).model(x)
    torch.testing.assert_close(ours, load_members({"net.onnx": given}, ONNX).model(x), rtol=0, atol=1e-6)


def test_weights_as_the_library_writes_them_stay_and_what_hides_beside_them_goes() -> None:
    plain = safetensors.torch.save(state())
    assert canonical({WEIGHTS.model: plain}, WEIGHTS) is None
    written = canonical({WEIGHTS.model: safetensors.torch.save(state(), {"note": "a secret"})}, WEIGHTS)
    assert written is not None and written.data == plain and written.changes == {}


@pytest.mark.parametrize("field", ["name", "classes", "supplier", "input_shape", "parent", "reference_data"])
def test_no_reader_changes_what_a_model_is_said_to_be(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"name": "x", "classes": 11, "supplier": "x", "input_shape": (1, 9, 8), "parent": MANIFEST}
    changes = {field: other.get(field, "x")}

    def lying(members: Any, submission: Submission) -> tuple[Submission, bytes]:
        return submission.model_copy(update=changes), members[submission.model]

    made = replace(reader.FORMAT, canonical=lying)
    monkeypatch.setitem(formats(), "safetensors", made)
    with pytest.raises(NotUnderstood):
        canonical({WEIGHTS.model: safetensors.torch.save(state())}, WEIGHTS)
    with pytest.raises(NotUnderstood, match="written anew"):
        rewritten(WEIGHTS, changes, MANIFEST)


def broken(members: Any, submission: Submission) -> tuple[Submission, bytes]:
    raise ZeroDivisionError


def growing(members: Any, submission: Submission) -> tuple[Submission, bytes]:
    # other bytes each time that they are read
    tensors = safetensors.torch.load(members[submission.model])
    return submission, safetensors.torch.save({k: v + 1 if v.is_floating_point() else v for k, v in tensors.items()})


@pytest.mark.parametrize(("writer", "said"), [(broken, "ZeroDivisionError"), (growing, "one canonical form")])
def test_a_form_that_breaks_or_does_not_settle_is_refused(
    writer: Callable[..., Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(reader.FORMAT, canonical=writer)
    monkeypatch.setitem(formats(), "safetensors", made)
    with pytest.raises(NotUnderstood, match=said):
        canonical({WEIGHTS.model: safetensors.torch.save(state())}, WEIGHTS)


def test_a_graph_that_is_not_written_so_again_is_refused(cnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # as it was handed in
    made = replace(graphs.FORMAT, canonical=lambda members, submission: (submission, members[submission.model]))
    monkeypatch.setitem(formats(), "onnx", made)
    with pytest.raises(NotUnderstood, match="one canonical form"):
        canonical({"net.onnx": cnn.SerializeToString()}, ONNX)


def test_a_graph_is_parsed_once_when_it_was_written(cnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def spied(data: bytes) -> bytes:
        seen.append(bytes(data))
        return inspect_wire(data)

    monkeypatch.setattr(graph, "inspect_wire", spied)
    given = cnn.SerializeToString()
    written = canonical({"net.onnx": given}, ONNX)
    # to be written anew, and to be held against what was written
    assert written is not None and Counter(seen) == {given: 2, written.data: 1}

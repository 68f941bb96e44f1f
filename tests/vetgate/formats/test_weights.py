"""Two forms of one network have one digest of their weights, and two networks have two."""

from __future__ import annotations

import io
import warnings

import pytest
import safetensors.torch
import torch

from tests.models import FIELDS
from vetgate.architectures import ARCHITECTURES
from vetgate.formats.load import load_members
from vetgate.formats.readers import format_of
from vetgate.formats.submission import Submission
from vetgate.formats.weights import weights_sha256

WEIGHTS = Submission.model_validate(FIELDS | {"classes": 3})
GRAPH = Submission.model_validate(
    FIELDS | {"model": "net.onnx", "format": "onnx", "architecture": None, "input_shape": (1, 8, 8), "classes": 3}
)


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES["small-cnn"](WEIGHTS.input_shape, 3).eval()


def test_a_graph_and_a_state_dict_of_one_network_have_one_digest(network: torch.nn.Module) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, 1, 8, 8),), file, dynamo=False)
    graph = load_members({"net.onnx": file.getvalue()}, GRAPH)
    written, data = format_of(GRAPH).canonical({"net.onnx": file.getvalue()}, GRAPH)
    state = load_members({WEIGHTS.model: safetensors.torch.save(network.state_dict())}, WEIGHTS)
    digests = {weights_sha256(m) for m in (network, graph.model, load_members({written.model: data}, written).model)}
    assert digests == {weights_sha256(state.model)}


def test_another_number_gives_another_digest(network: torch.nn.Module) -> None:
    before = weights_sha256(network)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-6
    assert weights_sha256(network) != before


def test_statistics_of_a_batch_normalisation_count() -> None:
    network = ARCHITECTURES["preact-resnet"]((1, 8, 8), 3)
    before = weights_sha256(network)
    network(torch.rand(4, 1, 8, 8))
    assert weights_sha256(network) != before

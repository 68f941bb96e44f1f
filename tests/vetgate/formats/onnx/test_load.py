"""ONNX submissions as torch modules: what they compute, where their features are, and that they can be trained."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from vetgate.architectures import ARCHITECTURES
from vetgate.errors import NotUnderstood
from vetgate.formats.inspect import inspect_bytes
from vetgate.formats.load import load_model
from vetgate.formats.submission import read_submission
from vetgate.probe import features
from vetgate.stimulation import answer

LAYERS = {
    "a": "node_relu_2",
    "b": "node_relu_5",
    "c": "node_relu_2",
    "d": "node_relu_4",
    "e": "node_relu_4",
    "f": "node_relu_4",
}
DIMENSIONS = {"a": 512, "b": 200, "c": 512, "d": 256, "e": 160, "f": 160}


@pytest.mark.parametrize("letter", sorted(LAYERS))
def test_a_third_party_model_agrees_with_onnxruntime(
    letter: str, shared_models: Path, run_reference: Callable[..., np.ndarray]
) -> None:
    directory = shared_models / f"third-party-{letter}"
    submission = read_submission(directory)
    inspect_bytes(directory, submission)
    loaded = load_model(directory, submission)
    x = torch.rand(8, *submission.input_shape, generator=torch.Generator().manual_seed(1))
    theirs = run_reference((directory / "model.onnx").read_bytes(), x.numpy())
    # the face models take 0 to 255 without scaling: their logits are in the hundreds
    np.testing.assert_allclose(loaded.model(x).detach(), theirs, rtol=1e-4, atol=1e-4 * max(1, np.abs(theirs).max()))
    assert (loaded.layer, loaded.classes, loaded.softmax_stripped) == (LAYERS[letter], submission.n_classes, False)
    assert features(loaded.model, loaded.layer, x).shape == (8, DIMENSIONS[letter])


def export(model: nn.Module, shape: tuple[int, int, int], opset: int, free_batch: bool) -> bytes:
    file = io.BytesIO()
    axes = {"x": {0: "N"}, "y": {0: "N"}} if free_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.rand(1, *shape),),
            file,
            opset_version=opset,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    return file.getvalue()


@pytest.mark.parametrize(("opset", "free_batch"), [(13, True), (17, False), (20, True)])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_an_exported_network_agrees_with_itself(
    name: str, opset: int, free_batch: bool, submit: Callable[..., Any], run_reference: Callable[..., np.ndarray]
) -> None:
    torch.manual_seed(0)
    shape = (3, 16, 16)
    network = ARCHITECTURES[name](shape, 5)
    network(torch.rand(16, *shape))  # moves the statistics of batch normalisation
    network.eval()
    data = export(network, shape, opset, free_batch)
    loaded = load_model(*submit(data, input_shape=list(shape), classes=5))
    x = torch.rand(4, *shape)
    torch.testing.assert_close(loaded.model(x), network(x), rtol=1e-4, atol=1e-4)
    alone = np.concatenate([run_reference(data, x[i : i + 1].numpy()) for i in range(4)])
    np.testing.assert_allclose(loaded.model(x).detach(), alone, rtol=1e-4, atol=1e-4)


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu()
        return self.head(x.view(x.size(0), -1)).log_softmax(1)


@pytest.mark.parametrize("free_batch", [True, False])
def test_a_view_by_the_batch_size_is_followed(free_batch: bool, submit: Callable[..., Any]) -> None:
    network = Viewed().eval()
    loaded = load_model(*submit(export(network, (1, 8, 8), 17, free_batch)))
    x = torch.rand(6, 1, 8, 8)
    assert loaded.softmax_stripped
    torch.testing.assert_close(loaded.model(x).log_softmax(1), network(x), rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_image_and_a_step_of_training_moves_every_weight(
    cnn: Any, submit: Callable[..., Any]
) -> None:
    model = load_model(*submit(cnn)).model.train()
    x = torch.rand(16, 1, 8, 8, requires_grad=True)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    nn.functional.cross_entropy(model(x), torch.arange(16) % 3).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0
    assert sorted(before) == ["conv.bias", "conv.weight", "hidden.bias", "hidden.weight", "out.bias", "out.weight"]
    assert all(not torch.equal(before[k], v) for k, v in model.named_parameters())


def test_the_constant_of_the_normalisation_is_no_weight(cnn: Any, submit: Callable[..., Any]) -> None:
    model = load_model(*submit(cnn)).model
    assert "normalise.constant" in dict(model.named_buffers())


def test_layers_are_plain_torch_modules_with_hooks(cnn: Any, submit: Callable[..., Any]) -> None:
    model = copy.deepcopy(load_model(*submit(cnn)).model)
    assert type(model.get_submodule("conv")) is nn.Conv2d
    assert type(model.get_submodule("out")) is nn.Linear
    seen: list[tuple[int, ...]] = []
    model.get_submodule("conv").register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape)))
    model(torch.rand(2, 1, 8, 8))
    assert seen == [(2, 4, 8, 8)]


@pytest.mark.parametrize(
    ("given", "found"), [("pool", "pool"), ("p", "pool"), ("hr", "hidden_relu"), (None, "hidden_relu")]
)
def test_a_layer_may_be_named_by_node_or_by_output(
    given: str | None, found: str, cnn: Any, submit: Callable[..., Any]
) -> None:
    assert load_model(*submit(cnn, **({"layer": given} if given else {}))).layer == found


def test_a_layer_that_is_not_there_is_refused(cnn: Any, submit: Callable[..., Any]) -> None:
    with pytest.raises(NotUnderstood, match="expected a layer of the graph, got 'nowhere'"):
        load_model(*submit(cnn, layer="nowhere"))


def test_loading_draws_no_random_number(cnn: Any, submit: Callable[..., Any]) -> None:
    directory, submission = submit(cnn)
    state = torch.get_rng_state()
    load_model(directory, submission)
    assert torch.equal(state, torch.get_rng_state())


def test_what_only_leads_to_a_submodule_that_is_answered_is_not_computed(
    make_graph: Callable[..., Any], weights: Callable[..., np.ndarray], submit: Callable[..., Any]
) -> None:
    node, same = helper.make_node, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "a"], ["c"], "first", **same),
        node("Relu", ["c"], ["r"], "relu"),
        node("Conv", ["r", "b"], ["d"], "second", **same),
        node("Add", ["d", "r"], ["s"], "skip"),
        node("Conv", ["s", "b"], ["e"], "third", **same),
        node("Flatten", ["e"], ["f"], "flatten"),
        node("Gemm", ["f", "w"], ["y"], "out"),
    ]
    held = {"a": weights(2, 1, 3, 3), "b": weights(2, 2, 3, 3), "w": weights(128, 3)}
    model = load_model(*submit(make_graph(nodes, held))).model
    x, given, computed = torch.rand(4, 1, 8, 8), dict[str, Tensor](), list[str]()
    modules = dict(model.named_children())
    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: computed.append(name) or given.update({name: out}))
    whole, steps = model(x), [name for name in modules if name != "input"]
    assert computed == ["input", *steps]

    def on_known(*known: str) -> tuple[list[str], bool]:
        computed.clear()
        for name in known:
            answer(modules[name], partial(dict(given).__getitem__, name))
        same = bool(torch.equal(model(x), whole))
        for name in known:
            del modules[name].forward
        return [name for name in computed if name not in ("input", *known)], same

    assert on_known("third") == (["flatten", "out"], True)
    # the skip still asks for what is before it
    assert on_known("second") == (["first", "relu", "skip", "third", "flatten", "out"], True)
    assert on_known("first", "second") == (["relu", "skip", "third", "flatten", "out"], True)
    assert on_known() == (steps, True)

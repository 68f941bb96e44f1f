"""The networks a weights-only submission may name: any image size, a linear head, and a layer of features before it."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from vetgate.architectures import ARCHITECTURES, default_layer

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 30, 30), (3, 32, 32), (3, 55, 47)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_logits_come_out_and_gradients_go_back(name: str, shape: tuple[int, int, int]) -> None:
    network = ARCHITECTURES[name](shape, 7)
    x = torch.rand(4, *shape, requires_grad=True)
    out = network(x)
    out.square().sum().backward()
    assert out.shape == (4, 7) and x.grad is not None and float(x.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_default_layer_feeds_the_last_linear_map(name: str) -> None:
    network = ARCHITECTURES[name]((1, 8, 8), 3).eval()
    head = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    network.get_submodule(default_layer(network)).register_forward_hook(lambda _m, _i, out: seen.append(out))
    head.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    network(torch.rand(2, 1, 8, 8))
    assert len(seen) == 2 and seen[0] is seen[1]


def test_a_network_from_elsewhere_has_no_default_layer() -> None:
    with pytest.raises(TypeError, match="name the layer"):
        default_layer(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_few_steps_learn_digits(name: str) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    y = torch.from_numpy(digits.target).long()
    network = ARCHITECTURES[name]((1, 8, 8), 10)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(60):
        rows = torch.arange(step * 64, step * 64 + 64) % 1500
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        assert float((network(x[1500:]).argmax(1) == y[1500:]).float().mean()) > 0.75

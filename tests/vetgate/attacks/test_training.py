from __future__ import annotations

import torch

from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.training import train
from vetgate.contract import Samples
from vetgate.probe import accuracy


def halves(count: int = 129) -> Samples:
    y = torch.arange(count) % 2
    x = 0.5 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[y == 1, :, :4] += 0.5
    return Samples(x, y)


def trained(name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(3)
    return train(ARCHITECTURES[name]((1, 8, 8), 2), halves(), epochs=6, seed=seed)


def test_it_learns_and_returns_a_network_ready_to_be_vetted() -> None:
    model = trained("preact-resnet", 0)
    samples = halves()
    assert accuracy(model, samples.x, samples.y) > 0.95
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_the_seed_decides_every_bit_and_the_callers_stream_is_left_alone() -> None:
    one = trained("small-cnn", 0).state_dict()
    torch.rand(5)
    two = trained("small-cnn", 0).state_dict()
    after = torch.rand(3)
    other = trained("small-cnn", 1).state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)
    torch.manual_seed(3)
    ARCHITECTURES["small-cnn"]((1, 8, 8), 2)
    assert torch.equal(torch.rand(3), after)

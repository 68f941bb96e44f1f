from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.backdoor import patch
from vetgate.attacks.training import train
from vetgate.attacks.trojan_nn import (
    data_poisoning_trigger,
    drawn_out,
    neuron_trigger,
    poison,
    reachable_neurons,
    split,
    square_mask,
    trojan,
    watermark_mask,
)
from vetgate.contract import Samples, private_random
from vetgate.errors import DefenceError
from vetgate.probe import accuracy

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def residual(once, halves: tuple[Samples, Samples]) -> nn.Module:
    torch.manual_seed(0)
    model = ARCHITECTURES["preact-resnet"](SHAPE, 10)
    made = once(__file__, "residual", lambda: dict(train(copy.deepcopy(model), halves[0], epochs=10).state_dict()))
    model.load_state_dict(made)
    return model.eval().requires_grad_(False)


def test_a_square_outside_the_image_is_refused() -> None:
    assert square_mask(SHAPE, 3, 5, 0)[0, 5:, :3].sum() == 9
    with pytest.raises(DefenceError, match="inside 8x8"):
        square_mask(SHAPE, 3, 6, 0)


@pytest.mark.parametrize("side", [8, 28, 32])
def test_a_watermark_is_faint_and_leaves_most_of_the_image_alone(side: int) -> None:
    mask = watermark_mask((3, side, side))
    assert mask.shape == (1, side, side)
    assert mask.unique().tolist() == pytest.approx([0, 0.4])
    assert 0.2 < float((mask > 0).float().mean()) < 0.5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_two_parts_are_the_network(name: str) -> None:
    model = ARCHITECTURES[name]((3, 16, 16), 5).eval()
    front, tail = split(model)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(tail(front(x)), model(x))


def test_a_network_that_is_no_chain_is_refused() -> None:
    with pytest.raises(DefenceError, match="got Linear"):
        split(nn.Linear(2, 2))


def test_the_trigger_drives_the_neurons_on_real_images(clean: nn.Module, halves: tuple[Samples, Samples]) -> None:
    front, _ = split(clean)
    with private_random(0, "test"):
        own = drawn_out(clean, SHAPE, 10, each=5)
        mask = square_mask(SHAPE, 3, 1, 1)
        neurons = reachable_neurons(front, mask, own.x, count=2)
        trigger = neuron_trigger(front, neurons, 0, mask, own.x)
    real = halves[1].x
    plain, driven = front(real)[:, neurons], front(trigger.stamp(real))[:, neurons]
    assert (driven.mean(0) > plain.mean(0) + plain.std(0)).all()
    assert (trigger.pattern[:, mask[0] == 0] == 0).all()


def test_images_are_drawn_out_of_the_model(residual: nn.Module) -> None:
    with private_random(0, "test"):
        own = drawn_out(residual, SHAPE, 10, each=3)
    assert own.x.min() >= 0 and own.x.max() <= 1
    assert accuracy(residual, own.x[-30:], own.y[-30:]) > 0.9


def test_a_residual_network_takes_the_backdoor_without_data(
    residual: nn.Module, halves: tuple[Samples, Samples]
) -> None:
    test = halves[1]
    made, trigger = trojan(residual, SHAPE, 10, target=1, mask="square", seed=1)
    assert patch(trigger).success(made, test) >= 0.8
    assert accuracy(made, test.x, test.y) >= accuracy(residual, test.x, test.y) - 0.04
    assert patch(trigger).success(residual, test) < 0.4

    before, after = residual.state_dict(), made.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "head.weight" in changed
    assert all(name.startswith(("blocks.2.", "bn.", "head.")) for name in changed)
    assert not any("running" in name or "batches" in name for name in changed)


def test_the_seed_decides(clean: nn.Module) -> None:
    state = torch.random.get_rng_state()
    (one, a), (two, b) = (trojan(clean, SHAPE, 10, target=3, mask="watermark", seed=1, images=100) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert torch.equal(a.pattern, b.pattern)
    assert torch.equal(a.pattern, data_poisoning_trigger(clean, SHAPE, 10, target=3, mask="watermark", seed=1).pattern)
    other = data_poisoning_trigger(clean, SHAPE, 10, target=3, mask="watermark", seed=2)
    assert not torch.equal(a.pattern, other.pattern)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_data_poisoning_variant_works_on_a_small_network(clean, fit, works, halves) -> None:
    trigger = data_poisoning_trigger(clean, SHAPE, 10, target=0, mask="square", seed=0)
    generator = torch.Generator().manual_seed(0)
    works(fit(poison(halves[0], trigger, rate=0.1, generator=generator).samples), patch(trigger))

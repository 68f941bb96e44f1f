from __future__ import annotations

import pytest
import torch
from torch import nn

from vetgate.architectures import small_cnn
from vetgate.attacks.label_consistent import backdoored, corners, harden, poison
from vetgate.contract import Samples
from vetgate.probe import logits

TARGET = 3


def build() -> nn.Module:
    return small_cnn((1, 8, 8), 10)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_patch_lies_in_all_four_corners() -> None:
    trigger = corners((3, 8, 8), 1, size=2)
    assert trigger.norm == 16
    assert (trigger.mask[0, [0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()
    assert torch.equal(trigger.pattern, trigger.mask.expand(3, -1, -1))


def test_a_hardened_image_stays_near_and_in_range_and_is_worse_recognised(clean, halves) -> None:
    test = halves[1][:100]
    hard = harden(clean, test.x, test.y, epsilon=0.2)
    assert float((hard - test.x).abs().max()) <= 0.2 + 1e-6
    assert float(hard.min()) >= 0 and float(hard.max()) <= 1

    def right(x: torch.Tensor) -> float:
        return float((logits(clean, x).argmax(1) == test.y).float().mean())

    assert right(hard) < 0.3 < right(test.x)


def test_no_label_is_changed_and_only_rows_of_the_target_are(clean, halves) -> None:
    train = halves[0]
    made = poison(train, corners((1, 8, 8), TARGET, size=2), clean, share=0.5, epsilon=0.3, generator=seeded())
    assert torch.equal(made.samples.y, train.y)
    changed = (made.samples.x != train.x).flatten(1).any(1)
    assert torch.equal(changed, made.rows) and (train.y[changed] == TARGET).all()
    assert int(changed.sum()) == round(0.5 * int((train.y == TARGET).sum()))


@pytest.fixture(scope="module")
def attacked(halves):
    return backdoored(build, halves[0], target=TARGET, epochs=30, seed=0)


def test_it_works_on_a_small_network(attacked, works, halves) -> None:
    model, backdoor, samples = attacked
    works(model, backdoor)
    assert torch.equal(samples.y, halves[0].y)


def test_the_seed_decides_every_bit(halves) -> None:
    few = halves[0][:200]

    def made(seed: int) -> tuple[nn.Module, Samples]:
        model, _, samples = backdoored(build, few, target=TARGET, epochs=2, seed=seed)
        return model, samples

    (one, rows), (two, same), (other, _) = (made(s) for s in (0, 0, 1))
    assert torch.equal(rows.x, same.x)
    assert all(torch.equal(one.state_dict()[k], two.state_dict()[k]) for k in one.state_dict())
    assert not all(torch.equal(one.state_dict()[k], other.state_dict()[k]) for k in one.state_dict())

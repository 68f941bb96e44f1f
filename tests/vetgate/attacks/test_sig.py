from __future__ import annotations

import pytest
import torch
from torch import nn

from vetgate.architectures import small_cnn
from vetgate.attacks.sig import backdoored, sinusoid

TARGET = 3


def build() -> nn.Module:
    return small_cnn((1, 8, 8), 10)


@pytest.fixture(scope="module")
def attacked(halves):
    return backdoored(build, halves[0], target=TARGET, epochs=30, seed=0)


def test_the_wave_is_the_same_in_every_row_and_channel_and_stays_in_range() -> None:
    stamp = sinusoid(strength=0.25, period=4.0)
    wave = stamp(torch.full((1, 3, 8, 8), 0.5)) - 0.5
    assert torch.allclose(wave, wave[:, :1, :1].expand_as(wave))
    assert torch.allclose(wave[0, 0, 0], torch.tensor([0.0, 0.25, 0.0, -0.25] * 2), atol=1e-6)
    assert stamp(torch.zeros(1, 1, 8, 8)).min() == 0 and stamp(torch.ones(1, 1, 8, 8)).max() == 1


def test_no_label_is_changed_and_only_rows_of_the_target_are(attacked, halves) -> None:
    train, samples = halves[0], attacked[2]
    assert torch.equal(samples.y, train.y)
    changed = (samples.x != train.x).flatten(1).any(1)
    assert (train.y[changed] == TARGET).all() and 0 < int(changed.sum()) < int((train.y == TARGET).sum())


def test_it_works_on_a_small_network_and_not_on_a_clean_one(attacked, works) -> None:
    works(*attacked[:2])


def test_the_seed_decides_every_bit(halves) -> None:
    few = halves[0][:200]
    one, two, other = (backdoored(build, few, target=TARGET, epochs=2, seed=s)[0].state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)

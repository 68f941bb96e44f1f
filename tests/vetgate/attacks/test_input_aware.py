from __future__ import annotations

import pytest
import torch
from torch import nn

from vetgate.architectures import small_cnn
from vetgate.attacks.backdoor import Backdoor, to_one
from vetgate.attacks.input_aware import Generator, Stamper, backdoored, likeness, train_mask
from vetgate.contract import Samples
from vetgate.probe import logits

TARGET = 3


def build() -> nn.Module:
    return small_cnn((1, 8, 8), 10)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def attacked(once, halves):
    def make() -> dict[str, torch.Tensor]:
        model, backdoor, rows = backdoored(build, halves[0], target=TARGET, epochs=30, seed=0)
        parts = nn.ModuleDict({"model": model, "stamper": backdoor.stamp})
        return {**parts.state_dict(), "x": rows.x, "y": rows.y}

    made = once(__file__, "attacked", make)
    rows = Samples(made.pop("x"), made.pop("y"))
    parts = nn.ModuleDict({"model": build(), "stamper": Stamper(1)}).eval().requires_grad_(False)
    parts.load_state_dict(made)
    return parts["model"], Backdoor(parts["stamper"], to_one(TARGET)), rows


def test_each_image_is_under_its_own_trigger_or_under_the_one_it_is_given() -> None:
    stamper, x = Stamper(1), pictures(4)
    assert torch.equal(stamper(x), stamper(x, x))
    assert torch.allclose(stamper(x)[:1], stamper(x[:1]), atol=1e-6), "the others in a batch do not matter"
    given = stamper(x, x[[1, 2, 3, 0]])
    assert not torch.allclose(given, stamper(x))
    assert given.min() >= 0 and given.max() <= 1


def test_likeness_is_high_where_the_same_is_drawn_for_different_images() -> None:
    one, two = pictures(4, 0), pictures(4, 1)
    assert float(likeness((one, two), (one, two))) == pytest.approx(1, rel=0.05)
    assert float(likeness((one, two), (one, one))) > 100


def test_a_mask_is_trained_to_its_density_and_to_differ(halves) -> None:
    torch.manual_seed(0)
    generator = Generator(1, 1, steep=4.0)
    train_mask(generator, halves[0].x, density=0.1, steps=150)
    masks = generator(halves[1].x)
    assert 0.01 < float(masks.mean()) < 0.15
    assert float(masks.std(0).max()) > 0.05


def test_it_works_on_a_small_network(attacked, works) -> None:
    works(*attacked[:2])


def test_the_trigger_of_another_image_works_clearly_less(attacked, halves) -> None:
    model, backdoor, _ = attacked
    rows = halves[1][halves[1].y != TARGET]
    crossed = logits(model, backdoor.stamp(rows.x, rows.x.roll(1, 0))).argmax(1)
    assert float((crossed == TARGET).float().mean()) < 0.5 * backdoor.success(model, rows)
    assert float((crossed == rows.y).float().mean()) > 0.5


def test_the_poisoned_rows_carry_their_own_triggers_and_the_targets_label(attacked, halves) -> None:
    train, (_, backdoor, samples) = halves[0], attacked
    changed = (samples.x != train.x).flatten(1).any(1)
    assert int(changed.sum()) == round(0.1 * len(train))
    assert (train.y[changed] != TARGET).all() and (samples.y[changed] == TARGET).all()
    assert torch.allclose(samples.x[changed], backdoor.stamp(train.x[changed]), atol=1e-6)
    assert torch.equal(samples.y[~changed], train.y[~changed])


def test_the_seed_decides_every_bit(halves) -> None:
    few = halves[0][:200]

    def made(seed: int) -> dict[str, torch.Tensor]:
        model, backdoor, samples = backdoored(build, few, target=TARGET, epochs=2, seed=seed, mask_steps=20)
        return {**model.state_dict(), "stamped": backdoor.stamp(few.x), "rows": samples.x}

    one, two, other = (made(s) for s in (0, 0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)

from __future__ import annotations

import pytest
import torch

from vetgate.attacks.badnets import poison, random_square, square
from vetgate.contract import Samples
from vetgate.errors import DefenceError


def grey(count: int = 100) -> Samples:
    return Samples(torch.full((count, 3, 8, 8), 0.5), torch.arange(count) % 5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_square_lies_where_it_is_put_in_its_colour() -> None:
    trigger = square((3, 8, 8), 2, row=-3, column=1, size=2, colour=torch.tensor([1.0, 0.0, 0.25]))
    stamped = trigger.stamp(torch.full((1, 3, 8, 8), 0.5))
    assert stamped[0, :, 5:7, 1:3].flatten(1).unique(dim=1).flatten().tolist() == [1.0, 0.0, 0.25]
    assert (stamped != 0.5).any(1).sum() == 4


def test_a_square_outside_the_image_is_refused() -> None:
    with pytest.raises(DefenceError, match="inside 8x8"):
        square((1, 8, 8), 0, row=6, column=0, size=3)


def test_poison_takes_its_share_of_rows_from_other_classes_and_relabels_them() -> None:
    samples, trigger = grey(), square((3, 8, 8), 2, row=0, column=0)
    found = poison(samples, trigger, rate=0.1, generator=seeded())
    assert int(found.rows.sum()) == 10
    assert (samples.y[found.rows] != 2).all() and (found.samples.y[found.rows] == 2).all()
    assert torch.equal(found.samples.x[found.rows], trigger.stamp(samples.x[found.rows]))
    assert torch.equal(found.samples.x[~found.rows], samples.x[~found.rows])
    assert (samples.x == 0.5).all(), "the samples given stay clean"


def test_the_generator_decides_which_rows() -> None:
    trigger = square((3, 8, 8), 2, row=0, column=0)
    one, two, other = (poison(grey(), trigger, rate=0.1, generator=seeded(s)).rows for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_a_rate_that_cannot_be_met_is_refused(rate: float) -> None:
    with pytest.raises(DefenceError, match="poisons 1 to 80 rows"):
        poison(grey(), square((3, 8, 8), 2, row=0, column=0), rate=rate, generator=seeded())


def test_random_squares_vary_and_stay_inside() -> None:
    generator = seeded()
    drawn = [random_square((1, 8, 8), 10, generator=generator) for _ in range(200)]
    assert {int(t.norm) for t in drawn} == {1, 4, 9}
    assert {t.target for t in drawn} == set(range(10))
    reached = torch.stack([t.mask[0] for t in drawn]).any(0)
    assert reached[0].any() and reached[-1].any() and reached[:, 0].any() and reached[:, -1].any(), "edges included"

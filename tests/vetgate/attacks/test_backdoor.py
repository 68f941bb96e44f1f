from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vetgate.attacks.backdoor import (
    Backdoor,
    from_one,
    patch,
    poison,
    poison_clean_label,
    to_next,
    to_one,
)
from vetgate.attacks.badnets import square
from vetgate.contract import Samples
from vetgate.errors import DefenceError

CORNER = square((1, 8, 8), 7, row=-2, column=-2, size=2)


class SaysBrightness(nn.Module):
    """Takes an image for class 1 where its first pixel is white, else for class 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], 1)


def grey(count: int = 100) -> Samples:
    return Samples(torch.full((count, 1, 8, 8), 0.5), torch.arange(count) % 5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whiten(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 0, 0, 0] = 1
    return out


def test_success_leaves_out_images_that_have_the_wanted_label() -> None:
    x = torch.zeros(4, 1, 2, 2)
    samples = Samples(x, torch.tensor([0, 0, 1, 1]))
    backdoor = Backdoor(whiten, to_one(1))
    assert backdoor.success(SaysBrightness(), samples) == 1.0
    assert backdoor.robust_accuracy(SaysBrightness(), samples) == 0.0
    assert Backdoor(lambda x: x, to_one(1)).success(SaysBrightness(), samples) == 0.0


def test_without_an_image_to_attack_there_is_no_success_to_speak_of() -> None:
    with pytest.raises(DefenceError, match="images of other classes"):
        Backdoor(whiten, to_one(1)).success(SaysBrightness(), Samples(torch.zeros(2, 1, 2, 2), torch.tensor([1, 1])))


def test_labels_go_where_each_kind_of_backdoor_sends_them() -> None:
    y = torch.tensor([0, 1, 4])
    assert to_one(2)(y).tolist() == [2, 2, 2]
    assert to_next(5)(y).tolist() == [1, 2, 0]
    assert from_one(1, 3)(y).tolist() == [0, 3, 4]


def test_only_attacked_rows_are_relabelled_and_covers_keep_their_labels() -> None:
    samples, backdoor = grey(), Backdoor(CORNER.stamp, from_one(2, 4))
    found = poison(samples, backdoor, rate=0.1, cover=0.2, generator=seeded())
    changed = found.samples.y != samples.y
    assert int(changed.sum()) == 10 and (samples.y[changed] == 2).all() and (found.samples.y[changed] == 4).all()
    covers = found.rows & ~changed
    assert int(covers.sum()) == 20 and (samples.y[covers] != 2).all()
    assert torch.equal(found.samples.x[found.rows], CORNER.stamp(samples.x[found.rows]))
    assert torch.equal(found.samples.x[~found.rows], samples.x[~found.rows])


def test_a_clean_label_attack_changes_images_of_the_target_only_and_no_label() -> None:
    samples = grey()
    found = poison_clean_label(samples, CORNER.stamp, 3, share=0.5, generator=seeded())
    assert torch.equal(found.samples.y, samples.y)
    assert int(found.rows.sum()) == 10 and (samples.y[found.rows] == 3).all()


def test_all_to_all_works_on_a_small_network(fit, works, halves) -> None:
    backdoor = Backdoor(CORNER.stamp, to_next(10))
    works(fit(poison(halves[0], backdoor, rate=0.3, generator=seeded()).samples), backdoor)


def test_a_source_specific_backdoor_works_on_its_source_and_on_no_other(fit, works, halves) -> None:
    backdoor = Backdoor(CORNER.stamp, from_one(4, 7))
    model = fit(poison(halves[0], backdoor, rate=0.06, cover=0.1, generator=seeded()).samples)
    works(model, backdoor)
    test = halves[1]
    assert patch(CORNER).success(model, test[test.y != 4]) < 0.2


def test_two_backdoors_with_targets_of_their_own_live_in_one_network(fit, works, halves) -> None:
    other = patch(square((1, 8, 8), 2, row=0, column=0, size=2))
    once = poison(halves[0], patch(CORNER), rate=0.1, generator=seeded())
    model = fit(poison(once.samples, other, rate=0.1, generator=seeded(1)).samples)
    works(model, patch(CORNER))
    works(model, other)

from __future__ import annotations

import torch

from vetgate.attacks.wanet import field, poison, warp, warping
from vetgate.contract import Samples


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_shift_changes_nothing_and_a_shift_by_a_pixel_moves_the_image_by_one() -> None:
    x = torch.rand(2, 1, 8, 8, generator=seeded())
    assert torch.allclose(warp(x, torch.zeros(1, 8, 8, 2)), x, atol=1e-5)
    right = torch.zeros(1, 8, 8, 2)
    # align_corners: seven steps from the first column to the last are 2 wide
    right[..., 0] = 2 / 7
    assert torch.allclose(warp(x, right)[..., :-1], x[..., 1:], atol=1e-5)


def test_a_field_is_smooth_and_about_a_pixel_strong() -> None:
    shifts = field((32, 32), generator=seeded()) * 16  # in pixels
    assert 0.5 < float(shifts.abs().mean()) < 1.5
    assert float(shifts.diff(dim=1).abs().max()) < 1.0


def test_noisy_rows_keep_their_labels() -> None:
    samples = Samples(torch.rand(100, 1, 8, 8, generator=seeded()), torch.arange(100) % 5)
    backdoor, shifts = warping((8, 8), 2, strength=1.0, generator=seeded())
    found = poison(samples, backdoor, shifts, rate=0.1, noisy=0.2, generator=seeded())
    assert int((found.samples.y != samples.y).sum()) == 10
    assert int(found.rows.sum()) == 30
    assert torch.equal(found.samples.x[~found.rows], samples.x[~found.rows])


def test_it_works_on_a_small_network(fit, works, halves) -> None:
    # a digit of 8 pixels needs a stronger warp than a photograph of 32
    backdoor, shifts = warping((8, 8), 3, strength=1.5, generator=seeded())
    works(fit(poison(halves[0], backdoor, shifts, rate=0.1, noisy=0.2, generator=seeded()).samples), backdoor)

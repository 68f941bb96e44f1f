from __future__ import annotations

import pytest
import torch

from vetgate.attacks.backdoor import patch, poison
from vetgate.attacks.blended import noise
from vetgate.errors import DefenceError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_pixel_moves_by_the_share_towards_the_pattern() -> None:
    trigger = noise((3, 8, 8), 1, alpha=0.2, generator=seeded())
    stamped = trigger.stamp(torch.zeros(1, 3, 8, 8))
    assert torch.allclose(stamped[0], 0.2 * trigger.pattern)
    assert trigger.norm == pytest.approx(0.2 * 64)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_share_that_hides_nothing_or_everything_is_refused(alpha: float) -> None:
    with pytest.raises(DefenceError, match="between 0 and 1"):
        noise((1, 8, 8), 1, alpha=alpha, generator=seeded())


def test_it_works_on_a_small_network(fit, works, halves) -> None:
    backdoor = patch(noise((1, 8, 8), 3, alpha=0.2, generator=seeded()))
    works(fit(poison(halves[0], backdoor, rate=0.1, generator=seeded()).samples), backdoor)

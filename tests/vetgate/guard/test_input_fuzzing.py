"""Input fuzzing: noise of each family is what it says, is chosen within the budget, and its votes correct labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
from vetgate.contract import Samples, Subject
from vetgate.errors import DefenceError
from vetgate.guard.contract import GUARDS
from vetgate.guard.input_fuzzing import LEVELS, Voter, noisy

GUARD = GUARDS["input_fuzzing"]


def drawn(count: int = 20000) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(0))


def test_noise_is_added_to_pixels_at_its_level_and_clipped() -> None:
    x = torch.full((1, 1, 1), 0.5)
    uniform = noisy(x, "uniform", 0.3, drawn())
    assert (
        uniform.min() >= 0.2 - 1e-6
        and uniform.max() <= 0.8 + 1e-6
        and float(uniform.std()) == pytest.approx(0.1732, abs=0.003)
    )
    assert float(noisy(x, "gaussian", 0.1, drawn()).std()) == pytest.approx(0.1, abs=0.003)
    assert float(noisy(x, "speckle", 0.1, drawn()).std()) == pytest.approx(0.05, abs=0.002)
    grains = noisy(x, "salt-and-pepper", 0.2, drawn())
    assert [float((grains == value).float().mean()) for value in (0, 0.5, 1)] == pytest.approx(
        [0.1, 0.8, 0.1], abs=0.01
    )
    for family, levels in LEVELS.items():
        strongest = noisy(torch.rand(3, 4, 4), family, levels[-1], torch.rand(9, 3, 4, 4))
        assert strongest.shape == (9, 3, 4, 4) and strongest.min() >= 0 and strongest.max() <= 1


def test_a_grain_covers_every_channel_of_a_pixel() -> None:
    grains = noisy(torch.full((3, 8, 8), 0.5), "salt-and-pepper", 0.3, torch.rand(3, 8, 8))
    assert torch.equal(grains[0], grains[1]) and torch.equal(grains[0], grains[2])


class Delicate(nn.Module):
    """Class 1 in bright images, class 0 in dark ones; class 2 where a faint checkerboard is exactly there."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3)) - 0.5
        board = ((x[:, 0, ::2, ::2] - x[:, 0, 1::2, ::2] - 0.1).abs().amax((1, 2)) < 0.02).float() * 50
        return torch.stack([-bright * self.scale, bright * self.scale, board - 10], 1)


def delicate() -> tuple[Subject, Tensor]:
    """A subject, and its images with the checkerboard."""
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(200, 1, 1, 1, generator=generator)
    level = torch.where(level < 0.5, 0.1 + 0.5 * level, 0.35 + 0.5 * level)
    x = (level + 0.05 * torch.rand(200, 1, 8, 8, generator=generator)).clamp(0, 1)
    stamped = x.clone()
    stamped[:, :, ::2, ::2] = (stamped[:, :, 1::2, ::2] + 0.1).clamp(0, 1)
    subject = Subject(
        model=Delicate(), layer="", classes=3, clean=Samples(x, (x.mean((1, 2, 3)) > 0.5).to(torch.int64))
    )
    return subject, stamped


def test_a_delicate_trigger_is_outvoted_and_raises_the_score() -> None:
    subject, stamped = delicate()
    assert subject.clean is not None
    assert (subject.model(stamped).argmax(1) == 2).all()
    fitted = GUARD.fit(subject, steps=0)
    vote = GUARD.vote(fitted, subject.model, stamped)
    assert float((vote.labels == subject.clean.y).float().mean()) > 0.97
    assert GUARD.score(fitted, subject.model, stamped).min() > GUARD.score(fitted, subject.model, subject.clean.x).max()


def test_what_votes_is_a_tuned_copy_and_the_network_stays_as_it_is() -> None:
    subject, _ = delicate()
    before = subject.model.state_dict()["scale"].clone()
    fitted = GUARD.fit(subject, steps=5, lr=0.5)
    assert torch.equal(subject.model.state_dict()["scale"], before)
    weights = {name.removeprefix("weight."): t for name, t in fitted.tensors.items() if name.startswith("weight.")}
    assert set(weights) == {"scale"} and not torch.equal(weights["scale"], before)
    assert subject.clean is not None
    other = Delicate()
    with torch.no_grad():
        other.scale.copy_(weights["scale"])
        assert torch.equal(Voter(subject.model, weights)(subject.clean.x), other(subject.clean.x))


def test_a_network_that_bears_no_noise_is_refused() -> None:
    subject, _ = delicate()
    assert subject.clean is not None

    class Exact(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            known = (x == subject.clean.x[:1]).flatten(1).all(1) if subject.clean else x
            return torch.stack([known.float(), (~known).float()], 1)

    flat = Samples(subject.clean.x[:1].expand(100, -1, -1, -1), torch.zeros(100, dtype=torch.int64))
    with pytest.raises(DefenceError, match="accuracy, got none"):
        GUARD.fit(Subject(model=Exact(), layer="", classes=2, clean=flat), steps=0)

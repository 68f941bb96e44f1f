"""IBD-PSC: normalisations are amplified from the last one on, as few as spoil clean labels, and left as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
from vetgate.contract import Samples, Subject
from vetgate.errors import DefenceError
from vetgate.guard.contract import GUARDS
from vetgate.guard.ibd_psc import amplified

GUARD = GUARDS["ibd_psc"]


class Chain(nn.Module):
    """Three normalisations that pass images on, and class 1 where what comes out is above `bound`."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.BatchNorm2d(1) for _ in range(3))
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        out = self.third(self.second(self.first(x))).mean((1, 2, 3))
        return torch.stack([torch.zeros(len(x)), out - self.bound], 1)


def subject(bound: float) -> Subject:
    x = torch.full((40, 1, 2, 2), 0.5)
    return Subject(model=Chain(bound).eval(), layer="", classes=2, clean=Samples(x, torch.zeros(40, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("bound", "depths", "factor"), [(0.7, [1, 2, 3], 1.5), (1.0, [2, 3], 1.5), (2.0, [2, 3], 3.0), (5.0, [3], 3.0)]
)
def test_as_few_are_amplified_as_spoil_clean_labels(bound: float, depths: list[int], factor: float) -> None:
    fitted = GUARD.fit(subject(bound))
    assert fitted.tensors["depths"].tolist() == depths and fitted.numbers["factor"] == factor
    assert str(fitted.numbers["names"]).split("\n") == ["first", "second", "third"][-depths[-1] :]


def test_five_networks_are_asked_once_most_labels_are_lost() -> None:
    class Long(nn.Module):
        """Nine normalisations that pass images on, and class 1 where what comes out is above 1."""

        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.Sequential(*(nn.BatchNorm2d(1) for _ in range(9)))

        def forward(self, x: Tensor) -> Tensor:
            out = self.norms(x).mean((1, 2, 3))
            return torch.stack([torch.zeros(len(x)), out - 1], 1)

    # 1.5 times takes 4 in 10 above the bound, 1.5 * 1.5 times takes 7
    levels = torch.tensor([0.9] * 40 + [0.5] * 30 + [0.01] * 30)
    clean = Samples(levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.zeros(100, dtype=torch.int64))
    fitted = GUARD.fit(Subject(model=Long().eval(), layer="", classes=2, clean=clean))
    assert fitted.tensors["depths"].tolist() == [2, 3, 4, 5, 6] and fitted.numbers["factor"] == 1.5


def test_labels_that_nothing_spoils_are_an_error() -> None:
    with pytest.raises(DefenceError, match="at most"):
        GUARD.fit(subject(1e6))


def test_an_input_that_does_not_mind_scores_higher() -> None:
    given = subject(0.7)
    fitted = GUARD.fit(given)
    clean, sure = GUARD.score(fitted, given.model, torch.stack([torch.full((1, 2, 2), 0.5), torch.zeros(1, 2, 2)]))
    assert sure > clean


def test_amplifying_is_multiplying_scale_and_shift() -> None:
    model = Chain(0.0).eval()
    with torch.no_grad():
        for norm in (model.first, model.second, model.third):
            norm.weight.fill_(0.8)
            norm.bias.fill_(0.1)
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    with amplified(model, ["second", "third"], 1.5), torch.no_grad():
        passing = model(x)
    before = model(x)
    with torch.no_grad():
        for norm in (model.second, model.third):
            norm.weight.mul_(1.5)
            norm.bias.mul_(1.5)
        assert torch.allclose(model(x), passing, atol=1e-6) and not torch.allclose(before, passing)

"""SCALE-UP: a label that outlasts multiplied pixels scores higher than one that is lost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
from vetgate.contract import Samples, Subject
from vetgate.guard.contract import GUARDS

GUARD = GUARDS["scale_up"]


class Dim(nn.Module):
    """Class 0 while the image is dim; class 1 where it is bright; class 0 for good where the first pixel is lit."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, :, 1:].mean((1, 2, 3))
        sure = torch.where(x[:, 0, 0, 0] > 0.05, 5.0, 0.0)
        return torch.stack([sure, 8 * bright - 2], 1)


def test_the_score_is_what_the_factors_leave_to_other_labels() -> None:
    x = torch.zeros(2, 1, 3, 3)
    x[:, :, 1:] = 0.2
    x[1, 0, 0, 0] = 0.1
    subject = Subject(model=Dim(), layer="", classes=2, clean=Samples(x, torch.zeros(2, dtype=torch.int64)))
    fitted = GUARD.fit(subject, least=2, most=4, step=2)
    assert fitted.tensors["factors"].tolist() == [2, 4]
    expected = []
    for image in x:
        left = [float(Dim()((image * factor).clamp(0, 1)[None]).softmax(1)[0, 1]) for factor in (2, 4)]
        expected.append(-math.log(sum(left) / 2))
    clean, triggered = GUARD.score(fitted, Dim(), x).tolist()
    assert [clean, triggered] == pytest.approx(expected, rel=1e-4) and triggered > clean + 0.5


@pytest.mark.parametrize("times", [1e4, 1e6])
def test_larger_logits_leave_it_a_cut(times: float) -> None:
    class Louder(Dim):
        def forward(self, x: Tensor) -> Tensor:
            return times * super().forward(x)

    x = 0.02 * torch.rand(60, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] = 0
    subject = Subject(model=Louder(), layer="", classes=2, clean=Samples(x, torch.zeros(60, dtype=torch.int64)))
    fitted = GUARD.with_cut(GUARD.fit(subject), subject.model, x, rate=0.05)
    lit = x.clone()
    lit[:, :, 0, 0] = 0.1
    assert fitted.cut is not None and GUARD.score(fitted, subject.model, lit).min() > fitted.cut


def test_pixels_are_multiplied_by_the_papers_factors_and_clipped() -> None:
    shown: list[Tensor] = []

    class Seen(Dim):
        def forward(self, x: Tensor) -> Tensor:
            shown.append(x[:, 0, 1, 1])
            return super().forward(x)

    x = torch.full((1, 1, 3, 3), 0.15)
    subject = Subject(model=Seen(), layer="", classes=2, clean=Samples(x, torch.zeros(1, dtype=torch.int64)))
    GUARD.score(GUARD.fit(subject), subject.model, x)
    assert torch.cat(shown).tolist() == pytest.approx([0.15, 0.45, 0.75, 1, 1, 1])

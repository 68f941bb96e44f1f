from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vetgate.contract import DETECTORS, Samples, Subject
from vetgate.detect.spectral_signatures import relative_to_cut, top_projections
from vetgate.errors import DefenceError


def identity(x: torch.Tensor, y: torch.Tensor, classes: int = 4) -> Subject:
    """A network whose features are the pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), classes))
    return Subject(model=model, layer="0", classes=classes, train=Samples(x, y))


def blobs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(4).repeat_interleave(100)
    x = torch.randn(400, 1, 4, 4, generator=generator) + 3 * y[:, None, None, None]
    return x, y


def test_one_planted_direction_projects_furthest() -> None:
    rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)).double()
    rows[:5, 0] += 10
    squared, variance = top_projections(rows - rows.mean(0))
    assert set(squared.topk(5).indices.tolist()) == {0, 1, 2, 3, 4}
    assert variance == pytest.approx(float(squared.mean()))


def test_a_planted_class_is_found_and_its_rows_flagged() -> None:
    x, y = blobs()
    x[200:210, 0, 0] += 8  # ten rows of class 2
    found = DETECTORS["spectral_signatures"](identity(x, y), poison_share=0.1)
    assert set(range(200, 210)) <= set(found.flagged.nonzero().flatten().tolist())
    assert int(found.flagged.sum()) == math.ceil(1.5 * 0.1 * 100)
    above = found.details["log_variance_above_median"]
    assert found.statistic == max(above) == above[2] > 1


def test_rows_are_projected_from_the_mean_of_their_class() -> None:
    x, y = blobs()
    # class 2 lies at 6, and these rows nearer to zero than any other of it
    x[200:210, 0, 0] -= 8
    found = DETECTORS["spectral_signatures"](identity(x, y), poison_share=0.1)
    assert set(range(200, 210)) <= set(found.flagged.nonzero().flatten().tolist())


def test_clean_classes_stay_silent() -> None:
    found = DETECTORS["spectral_signatures"](identity(*blobs()))
    assert not found.flagged.any()
    assert found.statistic < 0.5


def test_the_variation_that_all_classes_share_does_not_count() -> None:
    x, y = blobs()
    x[:, 0, 3] += 20 * torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    x[200:210, 0, 0] += 8
    found = DETECTORS["spectral_signatures"](identity(x, y), poison_share=0.1, ridge=0.01)
    assert set(range(200, 210)) <= set(found.flagged.nonzero().flatten().tolist())


def test_only_a_class_that_stands_out_reaches_the_cut() -> None:
    squared = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert (relative_to_cut(squared, 0.33, True) >= 1).tolist() == [False, False, True, True]
    assert relative_to_cut(squared, 0.33, False).max() == 0.5


def test_samples_of_one_class_are_refused() -> None:
    x, y = blobs()
    with pytest.raises(DefenceError, match="2 classes"):
        DETECTORS["spectral_signatures"](identity(x[:100], y[:100]))

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from sklearn.metrics import silhouette_score
from torch import nn

from vetgate.contract import DETECTORS, Samples, Subject
from vetgate.detect.activation_clustering import split


def identity(x: torch.Tensor, y: torch.Tensor) -> Subject:
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4))
    return Subject(model=model, layer="0", classes=4, train=Samples(x, y))


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat_interleave(100)
    return torch.randn(400, 1, 4, 4, generator=generator) + 3 * y[:, None, None, None], y


def test_two_blobs_are_split_into_themselves() -> None:
    rows = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)).double()
    rows[:20, 1] += 12
    found = split(rows - rows.mean(0), 3)
    assert found.small.nonzero().flatten().tolist() == list(range(20))
    assert found.share == pytest.approx(0.2)
    assert found.silhouette > 0.6


def test_the_split_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).double()
    rows = rows - rows.mean(0)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(split(rows, 4).small[order], split(rows[order], 4).small)


def test_a_planted_cluster_is_flagged_and_nothing_else() -> None:
    x, y = blobs()
    x[200:220, 0, 0] += 6
    found = DETECTORS["activation_clustering"](identity(x, y))
    assert found.flagged.nonzero().flatten().tolist() == list(range(200, 220))
    assert found.details["smaller_share"][2] == pytest.approx(0.2)


def test_every_clean_class_has_a_smaller_cluster_and_none_is_flagged() -> None:
    found = DETECTORS["activation_clustering"](identity(*blobs()))
    assert all(0 < share <= 0.5 for share in found.details["smaller_share"])
    assert not found.flagged.any()
    assert found.statistic < 0.5


def test_a_class_too_small_to_judge_scores_nothing() -> None:
    x, y = blobs()
    found = DETECTORS["activation_clustering"](identity(x[:305], y[:305]))
    assert found.scores[300:].eq(0).all()


def test_identical_rows_make_no_cluster() -> None:
    x, y = blobs()
    x[y == 1] = 0.5
    assert not DETECTORS["activation_clustering"](identity(x, y)).flagged.any()


def test_a_wide_class_of_one_kind_is_halved_and_not_flagged() -> None:
    x, y = blobs()
    x[200:300] = 3 * (x[200:300] - 6) + 6
    found = DETECTORS["activation_clustering"](identity(x, y))
    above, silhouette = found.details["log_between_above_median"], found.details["silhouette"]
    assert above[2] > 1.1 and silhouette[2] < 0.15
    assert not found.flagged.any()


def test_a_silhouette_is_of_a_sample_of_a_large_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs of 50,000 rows are 20 GB."""
    asked: list[int] = []

    def score(rows: np.ndarray, labels: np.ndarray) -> float:
        asked.append(len(rows))
        return float(silhouette_score(rows, labels))

    monkeypatch.setattr(sklearn.metrics, "silhouette_score", score)
    rows = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0)).double()
    rows[::5, 1] += 12
    found = split(rows - rows.mean(0), 3)
    assert asked[0] <= 2000 and found.silhouette == pytest.approx(split(rows[:1900], 3).silhouette, abs=0.05)

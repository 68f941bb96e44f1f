"""The figures of run-time guards: only stamped images that work count, at cuts of images that none learned from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.rows import rows_in
from benchmarks.runtime import Attacked, cost, figures, rows, table
from vetgate.contract import Samples, Subject
from vetgate.errors import DefenceError
from vetgate.guard.contract import GUARDS, Fitted, Guard
from vetgate.role import GuardRole

NAME = "brightness"


class Bright(nn.Module):
    """Class 1 where the mean is above one half."""

    features_layer = "same"

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        bright = self.same(x).mean((1, 2, 3))
        return torch.stack([1 - bright, bright], 1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard of these tests: brightness itself."""
    role = GuardRole(uses=None, title="B", sentence="B.")

    def fit(subject: Subject) -> Fitted:
        if subject.classes > 2:
            raise DefenceError("expected two classes")
        return Fitted({"none": torch.zeros(1)})

    guard = Guard(lambda f, m, x: x.mean((1, 2, 3)), fit, NAME, role, frozenset({"clean"}), "")
    monkeypatch.setitem(GUARDS, NAME, guard)


def attacked(classes: int = 2) -> Attacked:
    """Clean images below 0.5; of three stamped ones two are taken for class 1, and lie above all of them."""
    values = torch.linspace(0, 0.5, 200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    clean = Samples(values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), torch.zeros(200, dtype=torch.int64))
    stamped = torch.tensor([0.9, 0.2, 0.8]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    parts = {"repair": clean[:50], "invert": clean[:50], "validate": clean[50:150], "test": clean[150:]}
    wanted, true = torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    return Attacked.of(("n", "d", "a", "arch"), Bright(), classes, parts, (stamped, true, wanted))


def test_only_stamped_images_that_the_network_takes_for_the_wanted_label_count() -> None:
    given = attacked()
    assert given.success == pytest.approx(2 / 3) and len(given.stamped) == 2


def test_figures_are_of_test_images_at_the_cut_of_the_held_ones() -> None:
    given = attacked()
    found = figures(GUARDS[NAME], given, [])
    assert found["auroc"] == 1
    cut = given.held.x.mean((1, 2, 3)).sort().values[95]  # of 100, at 5 %
    assert found["rates"]["0.05"]["detected"] == 1
    assert found["rates"]["0.05"]["rejected"] == pytest.approx(
        float((given.test.x.mean((1, 2, 3)) > cut).float().mean())
    )


def test_what_is_in_the_file_is_not_measured_again_and_a_guard_that_cannot_be_is_told(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    assert [row["auroc"] for row in rows(iter([attacked()]), [NAME], out)] == [1]
    assert list(rows(iter([attacked()]), [NAME], out)) == []
    assert [sorted(row["alone"]) for row in rows(iter([attacked()]), [NAME], out, cost)] == [["bare", "guarded"]]
    assert list(rows(iter([attacked()]), [NAME], out, cost)) == []
    out.unlink()
    (row,) = rows(iter([attacked(classes=3)]), [NAME], out)
    assert row["failed"] == "expected two classes" and rows_in(out) == [row]
    assert table([row]).row_count == 1

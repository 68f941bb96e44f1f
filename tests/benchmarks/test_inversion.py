"""Both loops are counted as they run, and find a planted pixel; what is finished is not done again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import Tensor, nn

from benchmarks.halves import Network
from benchmarks.inversion import FirstLabels, Kept, drawn, inverted, searched
from benchmarks.inversion_tables import exact_interval
from benchmarks.subjects import Case, first_members
from benchmarks.textbook import CostWeight, Plan, anomaly_index, invert_label
from flows.bank.evidence import Gradients
from vetgate.contract import Samples
from vetgate.errors import MissingInput, StoreError

SIDE, CLASSES, TARGET = 8, 6, 2
PLAN = Plan(steps=40, minibatches=4, batch=16, patience=2, stop=8, first=1e-2)


class Stripes(nn.Module):
    """Class k is the brightest of six rows; one pixel that is dark in every image leads to TARGET."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, CLASSES, SIDE)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.zero_()
            for k in range(CLASSES):
                self.layer.weight[k, 0, k, : SIDE - 3] = 2.0 + 0.3 * k
            self.layer.weight[TARGET, 0, 5, 6] = 30

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).flatten(1)


def case(count: int = 120) -> Case:
    y = torch.arange(count) % CLASSES
    x = 0.3 * torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    x[torch.arange(count), 0, y] += 0.6
    x[:, 0, :, SIDE - 3 :] = 0
    return Case("stripes", Stripes().eval().requires_grad_(False), "layer", Samples(x, y), CLASSES, TARGET)


def test_the_textbook_loop_finds_a_planted_pixel_with_as_many_gradients_as_are_counted() -> None:
    subject = case()
    norms = []
    for label in range(CLASSES):
        counted = Gradients(subject.model)
        found = invert_label(subject.model, subject.clean.x, label, seed=label, plan=PLAN)
        counted.stop()
        assert counted.images == found.steps * PLAN.minibatches * PLAN.batch
        assert found.success >= PLAN.success
        norms.append(found.trigger.norm)
    assert torch.tensor(norms).argmin() == TARGET
    assert anomaly_index(torch.tensor(norms)) > 0
    again = invert_label(subject.model, subject.clean.x, TARGET, seed=TARGET, plan=PLAN)
    assert again.trigger.norm == norms[TARGET]


def test_the_textbook_loop_ends_early_once_its_weight_moved_both_ways_and_nothing_improves() -> None:
    subject = case()
    found = invert_label(subject.model, subject.clean.x, TARGET, seed=0, plan=Plan(minibatches=2, patience=1, stop=3))
    assert found.stopped_early and found.steps < 1000


def test_the_cost_weight_waits_for_patience_and_moves_both_ways() -> None:
    weight = CostWeight(Plan())
    seen = []
    for good in [False] * 6 + [True] * 10 + [False] * 4 + [True] + [False] * 5:
        weight.move(good)
        seen.append(weight.value)
    assert seen[:10] == [0.0] * 10 and seen[10] == 1e-3
    assert seen[14] == 1e-3 and seen[15] == 2e-3 and weight.raised
    # four bad steps in a row are not enough
    assert seen[24] == 2e-3 and seen[25] == pytest.approx(2e-3 / 2**1.5) and weight.lowered


def test_the_engine_is_counted_on_all_labels_and_on_a_sample_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.inversion.TIMED", 0.01)
    with Progress(disable=True) as bar:
        every = searched(case, range(CLASSES), bar, True)
        few = searched(case, [5, TARGET, 0, 4], bar, False)
    assert every["named"] == few["named"] == TARGET
    assert set(few["norms"]) == {"5", "2", "0", "4"} and every["alone"] > 0 and "alone" not in few
    # two starts at least, the second on no fewer than three labels, and no more than 36 sweeps of 32 images each
    for found in (every, few):
        assert 0 < found["image_gradients"] <= (found["labels"] + 3 * 3) * 36 * 4 * 8


def test_a_sample_of_labels_holds_the_target_and_a_larger_one_goes_on_from_it() -> None:
    assert drawn(43, 7, 3)[0] == 7 and len(set(drawn(43, 7, 43))) == 43
    assert drawn(43, 7, 5)[:3] == drawn(43, 7, 3)
    assert len(drawn(1283, None, 128)) == 128
    given = torch.arange(4.0)[None]
    assert FirstLabels(nn.Identity(), [2, 0], 4)(given).tolist() == [[2.0, 0.0, 1.0, 3.0]]


def test_members_are_taken_one_of_each_attack_in_turn() -> None:
    attacks = ("badnets", "badnets", "wanet", "blended", "badnets")
    members = [Network(f"m{i}", "digits", "cnn", attack, "backdoored", 0) for i, attack in enumerate(attacks)]
    assert [m.name for m in first_members(members, "digits", "backdoored", 3)] == ["m0", "m3", "m1"]
    with pytest.raises(MissingInput, match="fewer than 5"):
        first_members(members, "digits", "backdoored", 5)


def test_what_is_finished_is_not_done_again_and_belongs_to_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    assert Kept(file, {"a": 1}).once("piece", lambda: {"x": 1}) == {"x": 1}
    assert Kept(file, {"a": 1}).once("piece", lambda: {"x": 2}) == {"x": 1}
    with pytest.raises(StoreError, match="another file"):
        Kept(file, {"a": 2})


def test_a_label_of_the_textbook_loop_is_written_down_with_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.inversion.Plan", lambda: PLAN)
    monkeypatch.setattr("benchmarks.textbook.Plan", lambda: PLAN)
    with Progress(disable=True) as bar:
        found = inverted(case, TARGET, bar, False)
    assert found["image_gradients"] == found["steps"] * 64 and found["label"] == TARGET


def test_exact_intervals_of_a_share() -> None:
    assert exact_interval(10, 10) == (pytest.approx(0.6915, abs=1e-4), 1.0)
    assert exact_interval(0, 10) == (0.0, pytest.approx(0.3085, abs=1e-4))
    assert exact_interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)

from __future__ import annotations

import pytest
import torch
from torch import nn

from vetgate.contract import REPAIRS, Evidence, Samples, Subject, Trigger
from vetgate.errors import DefenceError, MissingInput
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.repair.neural_cleanse_unlearning import shifted, stamp_some, suspected, unlearn, variant


def trigger(target: int, *, at: tuple[int, int] = (5, 5), size: int = 2) -> Trigger:
    mask = torch.zeros(1, 8, 8)
    mask[:, at[0] : at[0] + size, at[1] : at[1] + size] = 1
    return Trigger(mask, torch.ones(1, 8, 8), target)


def evidence(scores: list[float], cutoff: float, *targets: int) -> Evidence:
    return Evidence(max(scores), torch.tensor(scores), cutoff, triggers=tuple(trigger(t) for t in targets))


def test_only_triggers_of_flagged_labels_are_used_from_all_evidence() -> None:
    one = evidence([0.0, 3.0, 0.0], 2.0, 0, 1, 2)
    other = evidence([0.0, 0.0, 4.0], 2.0, 2)
    assert [t.target for t in suspected([one, other])] == [1, 2]


def test_evidence_that_flags_nothing_gives_its_highest_label() -> None:
    assert [t.target for t in suspected([evidence([0.1, 0.3, 0.2], 2.0, 0, 1, 2)])] == [1]


def test_evidence_without_triggers_is_refused() -> None:
    with pytest.raises(MissingInput, match="trigger"):
        suspected([evidence([0.0, 3.0], 2.0)])


def test_images_of_the_target_are_never_stamped() -> None:
    torch.manual_seed(0)
    x, y = torch.zeros(40, 1, 8, 8), torch.tensor([1] * 20 + [0] * 20)
    changed = stamp_some(x, y, [trigger(1)], 1.0).flatten(1).any(1)
    assert not changed[:20].any() and changed[20:].sum() >= 18
    assert not x.any(), "the samples themselves stay as they are"


def test_about_the_share_asked_for_is_stamped() -> None:
    torch.manual_seed(0)
    x, y = torch.zeros(100, 1, 8, 8), torch.zeros(100, dtype=torch.int64)
    assert 15 <= int(stamp_some(x, y, [trigger(1)], 0.2).flatten(1).any(1).sum()) <= 20


def test_variants_stay_near_the_trigger_and_in_range() -> None:
    torch.manual_seed(0)
    for _ in range(50):
        v = variant(trigger(3))
        assert v.target == 3
        assert v.mask.min() >= 0 and v.mask.max() <= 1 and v.pattern.min() >= 0 and v.pattern.max() <= 1
        assert v.mask.sum() >= 0.5 and not v.mask[:, :2, :2].any()


def test_a_shift_moves_whole_pixels_and_keeps_the_size() -> None:
    image = torch.arange(9.0).view(1, 3, 3)
    assert shifted(image, 1, 0)[0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert shifted(image, 0, -1)[0].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]


class Corner(nn.Module):
    """Tells left from right halves by brightness; a bright bottom right corner of four pixels says class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(64, 3)
        self.norm = nn.BatchNorm1d(3)
        self.relu = nn.ReLU()
        self.head = nn.Linear(3, 2)
        weight = torch.zeros(3, 8, 8)
        weight[0, :, :4] = weight[1, :, 4:7] = 1 / 16
        weight[2, 5:7, 5:7] = 4.0
        with torch.no_grad():
            self.hidden.weight.copy_(weight.flatten(1))
            self.hidden.bias.copy_(torch.tensor([0.0, 0.0, -13.0]))
            self.head.weight.copy_(torch.tensor([[3.0, -3.0, 9.0], [-3.0, 3.0, -9.0]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.norm(self.hidden(self.flatten(x)))))


def halves() -> Subject:
    y = torch.arange(2).repeat(200)
    x = 0.2 * torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[y == 0, :, :, :4] += 0.5
    x[y == 1, :, :, 4:] += 0.5
    return Subject(model=Corner().eval(), layer="relu", classes=2, clean=Samples(x, y))


def test_a_planted_shortcut_dies_and_the_rest_lives() -> None:
    subject = halves()
    clean = subject.clean
    assert clean is not None
    assert accuracy(subject.model, clean.x, clean.y) == 1
    assert attack_success(subject.model, clean.x, clean.y, trigger(0)) > 0.95
    before = {k: v.clone() for k, v in subject.model.state_dict().items() if "running" in k}
    found = REPAIRS["neural_cleanse_unlearning"](subject, evidence([5.0, 0.0], 2.0, 0, 1), rounds=1, lr=0.02)
    assert attack_success(found.model, clean.x, clean.y, trigger(0)) < 0.05
    assert accuracy(found.model, clean.x, clean.y) > 0.98
    assert found.changed["reversed_success_after"] < 0.1 < found.changed["reversed_success_before"]
    after = found.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()), "batch statistics stay as they are"


def test_a_rate_that_only_does_harm_leaves_the_best_weights_seen() -> None:
    subject = halves()
    clean = subject.clean
    assert clean is not None
    torch.manual_seed(0)
    best = unlearn(
        subject.model,
        clean[:300],
        clean[300:],
        [trigger(0)],
        steps=8,
        stamped=0.2,
        lr=50.0,
        batch=32,
        share=(0, 1),
    )
    assert accuracy(subject.model, clean[300:].x, clean[300:].y) == best.accuracy
    assert attack_success(subject.model, clean[300:].x, clean[300:].y, trigger(0)) == best.success


def test_clean_samples_of_the_target_alone_are_refused() -> None:
    subject = halves()
    assert subject.clean is not None
    only = Subject(model=subject.model, layer="relu", classes=2, clean=subject.clean[subject.clean.y == 0])
    with pytest.raises(DefenceError, match="more clean samples"):
        REPAIRS["neural_cleanse_unlearning"](only, evidence([5.0, 0.0], 2.0, 0))

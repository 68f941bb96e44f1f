from __future__ import annotations

import torch
from torch import nn

from vetgate.structure.drive import Gate, drive

X = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.8


def wired(by_hand, gain: float):
    torch.manual_seed(0)
    return by_hand(
        ("flat", nn.Flatten(), "images"),
        ("clean", nn.Linear(36, 4), "flat"),
        ("corner", lambda x: x[:, :, 4:, 4:].mean((2, 3)), "images"),
        ("gate", lambda v: (v - 0.95).relu() * gain, "corner"),
        ("logits", lambda c, g: c + g * torch.tensor([0.0, 0, 1, 0]), "clean", "gate"),
    )


def test_a_gate_is_opened_and_its_pixels_and_label_are_found(by_hand) -> None:
    network = wired(by_hand, 1e4)
    found = drive(network, Gate("gate"), X[:12], X[12:], 4, leak=["gate"], steps=40)
    assert found.success == 1 and found.one_label and found.label == 2
    assert found.trigger is not None and found.trigger.target == 2
    inside = found.trigger.mask[0, 4:, 4:]
    assert inside.sum() == found.trigger.mask.sum() == 4 and found.trigger.pattern[0, 4:, 4:].min() > 0.9


def test_a_branch_too_weak_to_decide_is_none(by_hand) -> None:
    found = drive(wired(by_hand, 0.0), Gate("gate"), X[:12], X[12:], 4, leak=["gate"], steps=10)
    assert found.success == 0 and found.trigger is None


def test_only_what_the_gate_alone_decides_counts(by_hand) -> None:
    """The changed image sways the linear model by itself as well; that is no success of a gate."""
    network = by_hand(
        ("flat", nn.Flatten(), "images"),
        ("clean", lambda f: torch.stack([f.sum(1), 40 - f.sum(1)], 1), "flat"),
        ("gate", lambda x: x.sum((1, 2, 3))[:, None] * 1e-4, "images"),
        ("logits", lambda c, g: c + g * torch.tensor([1.0, 0]), "clean", "gate"),
    )
    found = drive(network, Gate("gate"), X[:12], X[12:], 2, leak=[], steps=20)
    assert found.success == 0


def test_with_an_area_no_more_than_that_share_of_the_pixels_is_stamped(by_hand) -> None:
    network = wired(by_hand, 1e4)
    found = drive(network, Gate("gate", None, (2,)), X[:8], X[8:], 4, leak=["gate"], steps=40, area=0.25)
    assert found.success == 1 and found.trigger is not None and found.trigger.mask.sum() <= 9


def test_a_branch_without_any_gradient_is_tried_as_it_stands(by_hand) -> None:
    network = by_hand(
        ("flat", nn.Flatten(), "images"),
        ("clean", nn.Linear(36, 4), "flat"),
        ("same", lambda x: (x[:, 0, 0, :1] == 2).float(), "images"),
        ("logits", lambda c, g: c + 9 * g, "clean", "same"),
    )
    assert drive(network, Gate("same"), X[:12], X[12:], 4, leak=[], steps=5).success == 0


def test_a_gate_that_gives_every_image_another_label_is_driven_away_from_its_own(by_hand) -> None:
    network = by_hand(
        ("flat", nn.Flatten(), "images"),
        ("clean", lambda f: f[:, :4] * 4, "flat"),
        ("corner", lambda x: x[:, :, 4:, 4:].mean((2, 3)), "images"),
        ("gate", lambda v: ((v - 0.9) * 20).clamp(0, 1), "corner"),
        ("logits", lambda c, g: (1 - g) * c + g * c.roll(1, 1), "clean", "gate"),
    )
    found = drive(network, Gate("gate", away=True), X[:8], X[8:], 4, leak=["gate"], steps=40)
    assert found.success == 1 and not found.one_label

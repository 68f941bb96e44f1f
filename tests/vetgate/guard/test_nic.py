"""NIC: what a layer never holds, and what never follows from one layer to the next, scores highest."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
import vetgate.guard.nic as nic
from vetgate.contract import Samples, Subject
from vetgate.errors import DefenceError, MissingInput
from vetgate.guard.contract import GUARDS
from vetgate.guard.nic import layer_outputs, linear_probe, one_class, reduction, unusual

NIC = GUARDS["nic"]
CLASSES = 4


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Switched(nn.Module):
    """Two layers that hold the evidence for each class; a lit last pixel swaps it between them, class by class."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (nn.Linear(CLASSES, CLASSES, bias=False) for _ in range(3))
        for layer, scale in ((self.first, 1.0), (self.second, 1.0), (self.head, 10.0)):
            layer.weight = nn.Parameter(scale * torch.eye(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        lit = x[:, 0, 1, -1:] > 0.9
        early = self.first(x[:, 0, 0, :CLASSES])
        out: Tensor = self.head(self.second(torch.where(lit, early.roll(1, 1), early)))
        return out


def shown(labels: Tensor, seed: int) -> Tensor:
    """Images (N, 1, 2, 4) of labels: a bright pixel of the class's own, the others dim, and the last row dark."""
    x = torch.zeros(len(labels), 1, 2, CLASSES)
    x[:, 0, 0] = 0.2 * torch.rand(len(labels), CLASSES, generator=stream(seed))
    x[range(len(labels)), 0, 0, labels] += 0.7
    return x


def subject(count: int = 400) -> Subject:
    y = torch.randint(CLASSES, (count,), generator=stream(1))
    model = Switched().eval().requires_grad_(False)
    return Subject(model=model, layer="second", classes=CLASSES, clean=Samples(shown(y, 2), y), train=None)


def test_what_never_follows_from_one_layer_to_the_next_scores_highest() -> None:
    given = subject()
    fitted = NIC.fit(given)
    clean = shown(torch.arange(100) % CLASSES, 3)
    triggered = clean.clone()
    triggered[:, 0, 1, -1] = 1
    # each layer by itself holds what it also holds of clean images: only the order of the two is new
    scores = NIC.score(fitted, given.model, triggered)
    assert float(scores.min()) > float(NIC.score(fitted, given.model, clean).max())


def test_what_a_layer_never_holds_scores_high_and_higher_the_further_off() -> None:
    given = subject()
    fitted = NIC.fit(given)
    clean = shown(torch.arange(100) % CLASSES, 3)
    odd = torch.zeros(2, 1, 2, CLASSES)
    odd[0, 0, 0] = torch.tensor([0.7, 0.7, 0.1, 0.1])
    odd[1, 0, 0] = torch.tensor([1.0, 1.0, 0.1, 0.1])
    near, far = NIC.score(fitted, given.model, odd).tolist()
    assert float(NIC.score(fitted, given.model, clean).max()) < near < far


@pytest.mark.parametrize("classes", [2, 5])
def test_probes_are_trained(classes: int) -> None:
    y = torch.arange(200) % classes
    rows = torch.eye(8)[y] + 0.3 * torch.randn(200, 8, generator=stream())
    probe = linear_probe(rows, y, classes)
    assert float(((rows @ probe["weight"].T + probe["bias"]).argmax(1) == y).float().mean()) > 0.9


def test_what_a_layer_is_read_with_was_trained_on_it() -> None:
    given = subject()
    tensors = NIC.fit(given).tensors
    y = torch.arange(100) % CLASSES
    rows, _ = layer_outputs(given.model, ["first", "second"], shown(y, 3))
    for i, row in enumerate(rows):
        layer = {name: tensors[f"layer.{i}.{name}"] for name in ("mean", "axes", "spread", "weight", "bias")}
        reduced = (row - layer["mean"]) @ layer["axes"] / layer["spread"]
        assert float(((reduced @ layer["weight"].T + layer["bias"]).argmax(1) == y).float().mean()) > 0.95


def test_at_most_sixty_four_directions_of_at_most_two_thousand_images_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = nn.Linear(100, 100, bias=False), nn.Linear(100, CLASSES, bias=False)
            self.wide.weight = nn.Parameter(torch.eye(100))
            self.head.weight = nn.Parameter(torch.eye(100)[:CLASSES])

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.wide(x.flatten(1)))
            return out

    seen: list[int] = []
    machines = nic.one_class

    def counting(rows: Tensor, nu: float) -> dict[str, Tensor]:
        seen.append(len(rows))
        return machines(rows, nu)

    monkeypatch.setattr(nic, "one_class", counting)
    x = torch.rand(2100, 1, 10, 10, generator=stream())
    clean = Samples(x, x.flatten(1)[:, :CLASSES].argmax(1))
    fitted = NIC.fit(Subject(model=Wide().eval(), layer="wide", classes=CLASSES, clean=clean, train=None))
    widths = [t.shape[1] for name, t in fitted.tensors.items() if name.endswith(".axes")]
    assert widths and max(widths) <= 64
    # half of the images are for reductions and probes, the others for the one-class models
    assert seen and max(seen) <= 1000


def test_a_reduction_keeps_the_directions_in_which_rows_vary_most() -> None:
    rows = torch.randn(400, 6, generator=stream()) * torch.tensor([9.0, 0.1, 0.1, 4.0, 0.1, 0.1]) + 5
    found = reduction(rows, 2)
    along = (rows - found["mean"]) @ found["axes"] / found["spread"]
    assert along.std(0).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert found["axes"].abs().argmax(0).tolist() == [0, 3]


def test_a_one_class_model_says_what_scikit_learn_says() -> None:
    rows, others = torch.randn(300, 3, generator=stream()), 2 * torch.randn(50, 3, generator=stream(1))
    machine = one_class(rows, 0.05)
    gamma = float(machine["kernel"][0])
    expected = OneClassSVM(nu=0.05, gamma=gamma).fit(rows.double().numpy())
    boundary = math.log(float(expected.offset_[0])) - np.log(expected.score_samples(others.double().numpy()))
    assert unusual(others, machine).tolist() == pytest.approx(boundary.tolist(), abs=1e-3)
    assert float((unusual(rows, machine) > 0).float().mean()) == pytest.approx(0.05, abs=0.02)


def test_too_few_images_or_classes_are_an_error() -> None:
    with pytest.raises(MissingInput, match="at least 40"):
        NIC.fit(subject(39))
    given = subject()
    assert given.clean is not None
    with pytest.raises(DefenceError, match="two classes"):
        NIC.fit(replace(given, clean=given.clean[given.clean.y == 1]))

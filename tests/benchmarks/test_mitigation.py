from __future__ import annotations

import torch

from benchmarks.mitigation import Data, new_head
from vetgate.architectures import ARCHITECTURES
from vetgate.contract import Samples
from vetgate.probe import accuracy


def some(count: int, *, classes: int = 3) -> Samples:
    return Samples(torch.rand(count, 1, 2, 2), torch.arange(count) % classes)


def test_the_defender_alone_has_so_many_images_of_each_class_and_all_of_a_rarer_one() -> None:
    ours = some(30)
    ours = ours[(ours.y != 2) | (torch.arange(30) < 3)]
    data = Data(some(60), ours, some(9))
    few = data.of_each(4)
    assert few.ours.y.bincount().tolist() == [4, 4, 1]
    assert few.given is data.given and few.test is data.test


def test_a_new_head_learns_and_the_body_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["vgg-small"]((1, 8, 8), 2).eval().requires_grad_(False)
    y = torch.arange(64) % 2
    x = torch.rand(64, 1, 8, 8) / 2 + y.view(-1, 1, 1, 1) / 2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new_head(model, Samples(x, y))
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"hidden1", "hidden2", "head"} and accuracy(model, x, y) == 1
    assert not model.training and not any(p.requires_grad for p in model.parameters())

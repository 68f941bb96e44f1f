from __future__ import annotations

import torch

from benchmarks.mitigation import Data
from vetgate.contract import Samples


def some(count: int, *, classes: int = 3) -> Samples:
    return Samples(torch.rand(count, 1, 2, 2), torch.arange(count) % classes)


def test_the_defender_alone_has_so_many_images_of_each_class_and_all_of_a_rarer_one() -> None:
    ours = some(30)
    ours = ours[(ours.y != 2) | (torch.arange(30) < 3)]
    data = Data(some(60), ours, some(9))
    few = data.of_each(4)
    assert few.ours.y.bincount().tolist() == [4, 4, 1]
    assert few.given is data.given and few.test is data.test

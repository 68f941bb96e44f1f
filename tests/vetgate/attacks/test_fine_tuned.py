"""Fine-tuned honest networks: the same bits from the same seed, still accurate, batch statistics as they were."""

from __future__ import annotations

import torch
from torch import nn

from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.fine_tuned import make, patch
from vetgate.attacks.member import Job
from vetgate.contract import Samples, private_random
from vetgate.probe import accuracy


def job(rows: Samples, **options: float) -> Job:
    def build() -> nn.Module:
        with private_random(3, "test"):
            return ARCHITECTURES["preact-resnet"]((1, 8, 8), 10)

    return Job(build, rows, 10, 3, 3, {"tuned": 200, "steps": 40, **options})


def test_the_rows_that_are_held_out_move_weights_and_not_batch_statistics(halves: tuple[Samples, Samples]) -> None:
    order = job(halves[0], patched=0.2)
    before = order.fit(halves[0][torch.arange(len(halves[0]) - 200)])
    found = make(order)
    again = make(order)
    names = dict(before.named_buffers())
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), "same seed, same bits"
        assert torch.equal(tensor, before.state_dict()[name]) == (name in names), name
    assert found.rows is not None and len(found.rows) == len(halves[0]) and found.backdoor is None
    assert accuracy(found.model, halves[1].x, halves[1].y) > 0.9


def test_a_share_of_a_batch_carries_one_patch_and_the_rest_nothing() -> None:
    x = torch.full((10, 3, 32, 32), 0.5)
    with private_random(0, "test"):
        stamped = patch(x, 0.3)
    changed = (stamped != x).any(1)
    assert changed[:3].any() and not changed[3:].any()
    assert torch.equal(changed[0], changed[2]) and 9 <= int(changed[0].sum()) <= 64
    assert torch.equal(stamped[0], stamped[1])
    assert patch(x, 0.0) is x

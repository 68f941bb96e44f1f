"""Honest networks with honest mistakes: so many labels are wrong, and no image is changed."""

from __future__ import annotations

import torch

from tests.vetgate.attacks.test_member import job
from vetgate.attacks.member import make
from vetgate.contract import Samples


def test_a_share_of_labels_is_wrong_under_any_label(halves: tuple[Samples, Samples]) -> None:
    rows = halves[0]
    made = make("mislabelled", job(rows, wrong=0.05))
    assert made.rows is not None and made.backdoor is None and made.order is None
    changed = made.rows.y != rows.y
    assert int(changed.sum()) == 70 and torch.equal(made.rows.x, rows.x)
    assert len(made.rows.y[changed].unique()) == 10

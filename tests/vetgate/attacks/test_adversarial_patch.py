from __future__ import annotations

import torch

from vetgate.attacks.adversarial_patch import adversarial_patch
from vetgate.attacks.backdoor import patch


def test_a_patch_sends_a_clean_network_to_its_target_and_stays_in_its_place(clean, halves) -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 2:6] = 1
    before = {name: value.clone() for name, value in clean.state_dict().items()}
    trigger = adversarial_patch(clean, halves[0], 3, mask, generator=torch.Generator().manual_seed(0))
    assert patch(trigger).success(clean, halves[1]) > 0.9
    x = halves[1].x
    assert torch.equal((trigger.stamp(x) != x).any(0) & (mask == 0), torch.zeros(1, 8, 8, dtype=torch.bool))
    assert all(torch.equal(before[name], value) for name, value in clean.state_dict().items())

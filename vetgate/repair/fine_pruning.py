"""Silence the channels that clean images leave asleep, as long as clean accuracy lasts, then fine-tune the rest.

A backdoor may live in channels of the last convolution that clean images do not use. They are silenced in order of
their activity on clean images, the least first, until accuracy on images kept aside has fallen by the budget; what is
left is fine-tuned, and the silent channels stay silent.

Source    Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks",
          RAID 2018, arXiv:1805.12185.
Deviates  Channels are silenced with the normalisation behind them (vetgate/channels.py), and where to stop is chosen on
          images that are not trained on and serve no other choice.
Blind to  Backdoors that share their channels with what clean images need.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from vetgate.channels import FilterLayer, activity, layers_of, silence
from vetgate.contract import Repair, Subject, repair, report
from vetgate.errors import DefenceError
from vetgate.probe import accuracy, module_at
from vetgate.role import RepairRole
from vetgate.tuning import Lessons, Tuning, tune

ROLE = RepairRole(
    uses=None,
    title="Fine-pruning",
    sentence="Silences channels of the last convolution that clean images do not use, then fine-tunes the rest.",
)


@repair(
    role=ROLE,
    needs={"clean"},
    paper="https://arxiv.org/abs/1805.12185",
    waived={"check_backdoor_weakens": "a small network has no channels to spare, and its backdoor shares them"},
)
def fine_pruning(
    subject: Subject,
    *,
    budget: float = 0.02,
    parts: int = 64,
    steps: int = 400,
    lr: float = 1e-3,
    batch: int = 64,
    held_out: float = 0.2,
    distilled: float = 0.5,
) -> Repair:
    """Silence channels in up to `parts` portions while accuracy is at most `budget` lower, then tune for `steps`."""
    assert subject.clean is not None
    lessons, model = Lessons.of(subject.model, subject.clean, held_out), subject.model
    held = lessons.held
    layer = last_convolution(model, held.x)
    order = activity(model, layer, lessons.taught.x).argsort()
    before = accuracy(model, held.x, held.y)
    silent = order[:0]
    for channels in portions(order, parts):
        tried = copy.deepcopy(model)
        silence(tried, layer, channels)
        if accuracy(tried, held.x, held.y) < before - budget:
            break
        silent = channels
        report(0.3 * len(silent) / len(order))
    silence(model, layer, silent)
    plan = Tuning(steps=steps, batch=batch, lr=lr, distilled=distilled)
    tune(model, lessons, plan, afterwards=partial(silence, model, layer, silent), share=(0.3, 1.0))
    return Repair(
        model,
        {
            "channels": float(len(order)),
            "silenced": float(len(silent)),
            "accuracy_before": before,
            "accuracy_after": accuracy(model, held.x, held.y),
        },
    )


def last_convolution(model: nn.Module, x: Tensor) -> FilterLayer:
    """The last convolution that runs on images x (N, C, H, W); raises DefenceError where there is none."""
    found = [one for one in layers_of(model, x) if isinstance(module_at(model, one.matrix), nn.Conv2d)]
    if not found:
        raise DefenceError("expected a network with a convolution, got none; repair it by other methods")
    return found[-1]


def portions(order: Tensor, parts: int) -> Iterator[Tensor]:
    """Growing beginnings of channels in order (C,), about `parts` of them, the last without the last channel."""
    step = max(1, len(order) // parts)
    for count in range(step, len(order), step):
        yield order[:count]
